"""The HTTP client and hostile URLs and names: no packet to a denied address (row 27)."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from shared.http.client import Client
from shared.http.guard import ForbiddenTargetError, Guard
from tests.fakes.hostile_urls import ELSEWHERE, LOOPBACK, MALFORMED
from tests.fakes.names import serve_names
from tests.fakes.receivers import respond, serve
from tests.fakes.sending import client, client_of, failure, post

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


class Dialled:
    """The addresses this process opened TCP connections to, as Python's audit events tell it."""

    def __init__(self) -> None:
        self.addresses: list[object] = []
        self.listening = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[object, ...]) -> None:
        if self.listening and event == "socket.connect":
            self.addresses.append(args[1])


_dialled = Dialled()  # once: an audit hook cannot be taken away


@pytest.fixture
def dialled() -> Iterator[list[object]]:
    _dialled.addresses, _dialled.listening = [], True
    yield _dialled.addresses
    _dialled.listening = False


@asynccontextmanager
async def every_local_address() -> AsyncIterator[tuple[int, list[int]]]:
    """Listen on all of this machine's addresses, old and new; give the port and the count."""
    accepted = [0]

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted[0] += 1
        writer.close()

    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        server = await asyncio.start_server(accept, sock=listener)
        async with server:
            yield listener.getsockname()[1], accepted


@pytest.mark.parametrize("url", LOOPBACK + ELSEWHERE + MALFORMED)
async def test_row_27_no_spelling_gets_a_packet_out(url: str, dialled: list[object]) -> None:
    async with every_local_address() as (port, accepted):
        async with Client(Guard(), user_agent="test") as sender:
            with pytest.raises(ForbiddenTargetError) as caught:
                await post(sender, url.replace("{port}", str(port)))
        assert accepted == [0]
    assert dialled == []
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "[::1]", "[::ffff:127.0.0.1]"])
async def test_the_watch_above_sees_a_connection_where_one_is_allowed(
    host: str, dialled: list[object]
) -> None:
    async with every_local_address() as (port, accepted), client() as sender:
        assert (await failure(sender, f"http://{host}:{port}/")).reason == "disconnected"
        assert accepted == [1]
    assert len(dialled) == 1


async def test_the_refusal_names_host_address_and_remedy() -> None:
    async with Client(Guard(), user_agent="test") as sender:
        with pytest.raises(
            ForbiddenTargetError, match=r"^localhost resolves to \S+, which is not a pub"
        ):
            await post(sender, "http://localhost:1/path?token=1")
        with pytest.raises(
            ForbiddenTargetError, match=r"^10\.0\.0\.1 is not .* the allowed networks$"
        ):
            await post(sender, "http://10.0.0.1/path?token=1")


async def test_row_27_a_name_that_turns_private_on_the_second_look_up_is_refused(
    dialled: list[object],
) -> None:
    names = {"rebind.test": ["127.0.0.2"]}
    async with every_local_address() as (port, accepted), serve_names(names) as server:
        url = f"http://rebind.test:{port}/"
        async with client_of(server.address) as sender:
            assert (await failure(sender, url)).reason == "disconnected"
            assert accepted == [1]
            names["rebind.test"] = ["127.0.0.1"]
            dialled.clear()
            with pytest.raises(
                ForbiddenTargetError, match=r"^rebind\.test resolves to 127\.0\.0\.1,"
            ):
                await post(sender, url)
        assert accepted == [1]
    assert dialled == []


async def test_row_27_of_mixed_answers_only_the_permitted_are_dialled(
    dialled: list[object],
) -> None:
    names = {"mixed.test": ["127.0.0.1", "127.0.0.2", "10.0.0.1"]}
    async with serve(respond(), host="127.0.0.2") as receiver, serve_names(names) as server:
        port = receiver.url.split(":")[2]
        async with client_of(server.address) as sender:
            for _ in range(3):
                assert (await post(sender, f"http://mixed.test:{port}")).status == 200
    assert {address[0] for address in dialled if isinstance(address, tuple)} == {"127.0.0.2"}


async def test_row_27_a_redirect_is_an_answer_not_an_order() -> None:
    async with serve(respond()) as inside:
        headers = {"Location": inside.url}
        for status in (301, 302, 303, 307, 308):
            async with client() as sender, serve(respond(status, headers)) as receiver:
                assert (await post(sender, receiver.url)).status == status
        assert inside.accepted == 0
