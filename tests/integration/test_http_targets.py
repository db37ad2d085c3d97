"""The HTTP client with hostile URLs and names: no packet to a denied address (row 27)."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import TYPE_CHECKING

import aiohttp
import pytest

from shared.errors import DeferredError
from shared.http.client import Client, RequestFailedError
from shared.http.guard import ForbiddenTargetError, Guard
from tests.fakes.dns_server import serve_names
from tests.fakes.hostile_urls import LOOPBACK, MALFORMED, NOT_PUBLIC
from tests.fakes.receivers import respond, serve
from tests.fakes.sending import client, client_of, failure, post

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


class ConnectionRecord:
    """A record of the addresses that this process connects to, from Python's audit events."""

    def __init__(self) -> None:
        self.addresses: list[object] = []
        self.recording = False
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, args: tuple[object, ...]) -> None:
        if self.recording and event == "socket.connect":
            self.addresses.append(args[1])


_record = ConnectionRecord()  # once: an audit hook cannot be removed


@pytest.fixture
def connected() -> Iterator[list[object]]:
    _record.addresses, _record.recording = [], True
    yield _record.addresses
    _record.recording = False


@asynccontextmanager
async def listen_everywhere() -> AsyncIterator[tuple[int, list[int]]]:
    """Listen on all IPv4 and IPv6 addresses; yield the port and the number of connections."""
    accepted = [0]

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted[0] += 1
        writer.close()

    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        server = await asyncio.start_server(accept, sock=listener)
        async with server:
            yield listener.getsockname()[1], accepted


@pytest.mark.parametrize("url", LOOPBACK + NOT_PUBLIC + MALFORMED)
async def test_row_27_no_spelling_of_a_denied_address_sends_a_packet(
    url: str, connected: list[object]
) -> None:
    async with listen_everywhere() as (port, accepted):
        async with Client(Guard(), user_agent="test") as sender:
            with pytest.raises(ForbiddenTargetError) as caught:
                await post(sender, url.replace("{port}", str(port)))
        assert accepted == [0]
    assert connected == []
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "[::1]", "[::ffff:127.0.0.1]"])
async def test_the_record_of_connections_notices_a_permitted_one(
    host: str, connected: list[object]
) -> None:
    async with listen_everywhere() as (port, accepted), client() as sender:
        assert (await failure(sender, f"http://{host}:{port}/")).reason == "disconnected"
        assert accepted == [1]
    assert len(connected) == 1


async def test_the_error_names_the_host_the_address_and_the_setting() -> None:
    async with Client(Guard(), user_agent="test") as sender:
        with pytest.raises(
            ForbiddenTargetError, match=r"^localhost resolves to \S+, which is not a pub"
        ):
            await post(sender, "http://localhost:1/path?token=1")
        with pytest.raises(
            ForbiddenTargetError, match=r"^10\.0\.0\.1 is not .* the allowed networks$"
        ):
            await post(sender, "http://10.0.0.1/path?token=1")


async def test_row_27_a_name_that_resolves_to_a_private_address_later_is_denied(
    connected: list[object],
) -> None:
    names = {"rebind.test": ["127.0.0.2"]}
    async with listen_everywhere() as (port, accepted), serve_names(names) as server:
        url = f"http://rebind.test:{port}/"
        async with client_of(server.address) as sender:
            assert (await failure(sender, url)).reason == "disconnected"
            assert accepted == [1]
            names["rebind.test"] = ["127.0.0.1"]
            connected.clear()
            assert "rebind.test resolves to 127.0.0.1," in (await failure(sender, url)).detail
        assert accepted == [1]
    assert connected == []


async def test_row_27_finding_b20_a_private_address_is_temporary_only_after_a_public_one(
    connected: list[object],
) -> None:
    """A name that was public and is private may be a mistake in DNS. It is retried, not called."""
    names = {"split.test": ["127.0.0.1"], "private.test": ["127.0.0.1"]}
    async with listen_everywhere() as (port, accepted), serve_names(names) as server:
        async with client_of(server.address) as sender:
            for name in names:
                with pytest.raises(ForbiddenTargetError, match=r"resolves to 127\.0\.0\.1,"):
                    await post(sender, f"http://{name}:{port}/")
            assert connected == []
            names["split.test"] = ["127.0.0.2"]
            assert (await failure(sender, f"http://split.test:{port}/")).reason == "disconnected"
            names["split.test"] = ["127.0.0.1"]
            connected.clear()
            assert (await failure(sender, f"http://split.test:{port}/")).reason == "dns"
            with pytest.raises(ForbiddenTargetError):
                await post(sender, f"http://private.test:{port}/")
        assert accepted == [1]
    assert connected == []


async def test_finding_b20_a_name_server_that_is_down_is_not_a_failure_of_the_targets() -> None:
    names = {"up.test": ["127.0.0.2"], "none.test": []}
    async with serve(respond(), host="127.0.0.2") as receiver, serve_names(names) as server:
        port = receiver.url.split(":")[2]

        async def call(name: str) -> str:
            try:
                await post(sender, f"http://{name}:{port}/", seconds=10)
            except (RequestFailedError, DeferredError) as error:
                return type(error).__name__
            return "delivered"

        async with client_of(server.address) as sender:
            # Some names without an answer are failures of their own name servers.
            lost = [await asyncio.gather(*(call(f"{n}.lost.test") for n in range(4)))]
            assert lost == [["RequestFailedError"] * 4]
            assert await call("up.test") == "delivered"
            # Without any answer, it is the name server.
            down = await asyncio.gather(*(call(f"{n}.down.test") for n in range(8)))
            assert sorted(down) == ["DeferredError"] * 4 + ["RequestFailedError"] * 4
            # A name that does not exist is an answer.
            assert await call("none.test") == "RequestFailedError"
            assert await call("0.down.test") == "RequestFailedError"


async def test_finding_b20_a_name_server_that_refuses_connections_is_down() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    async with client_of(address) as sender:
        with pytest.raises(DeferredError, match="the name server is down"):
            await post(sender, "http://some.test/", seconds=10)


@pytest.mark.parametrize("host", ["127.0.0.1", "local.test"])
async def test_finding_b20_other_ports_than_the_allowed_are_not_called(
    connected: list[object], host: str
) -> None:
    async with (
        serve(respond()) as allowed,
        serve(respond()) as other,
        serve_names({"local.test": ["127.0.0.1"]}) as server,
    ):
        ports = [int(receiver.url.split(":")[2].split("/")[0]) for receiver in (allowed, other)]
        guard = Guard((ip_network("127.0.0.1/32"),), (ports[0],))
        resolver = aiohttp.AsyncResolver(nameservers=[server.address], timeout=2.0, tries=1)
        async with Client(guard, user_agent="test", resolver=resolver) as sender:
            assert (await post(sender, f"http://{host}:{ports[0]}/")).status == 200
            connected.clear()
            with pytest.raises(ForbiddenTargetError, match=f"port {ports[1]} is not one of the al"):
                await post(sender, f"http://{host}:{ports[1]}/")
    assert ("127.0.0.1", ports[1]) not in connected
    assert other.requests == []


async def test_row_27_only_the_permitted_addresses_of_a_name_are_used(
    connected: list[object],
) -> None:
    names = {"mixed.test": ["127.0.0.1", "127.0.0.2", "10.0.0.1"]}
    async with serve(respond(), host="127.0.0.2") as receiver, serve_names(names) as server:
        port = receiver.url.split(":")[2]
        async with client_of(server.address) as sender:
            for _ in range(3):
                assert (await post(sender, f"http://mixed.test:{port}")).status == 200
    assert {address[0] for address in connected if isinstance(address, tuple)} == {"127.0.0.2"}


async def test_row_27_redirects_are_not_followed() -> None:
    async with serve(respond()) as target:
        headers = {"Location": target.url}
        for status in (301, 302, 303, 307, 308):
            async with client() as sender, serve(respond(status, headers)) as receiver:
                assert (await post(sender, receiver.url)).status == status
        assert target.accepted == 0
