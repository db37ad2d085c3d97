"""Connections are opened again when they are lost, with a growing delay."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from yarl import URL

from shared.amqp.connection import BrokerConnection, connect, keep_connected
from shared.amqp.declare import TopologyMismatchError
from shared.process.health import Health
from tests.fakes.command import ringback
from tests.fakes.sandbox import running_sandbox
from tests.fakes.waiting import until

CANARY = "c4n4ry"
# Nothing listens on port 1.
REFUSED = f"amqp://user:{CANARY}@127.0.0.1:1/"


def down(amqp_url: str) -> str:
    """Return the address of a node that is down, for the virtual host of another."""
    return str(URL(REFUSED).with_path(URL(amqp_url).path))


async def test_finding_b9_a_session_that_fails_at_once_is_repeated_with_backoff(
    amqp_url: str,
) -> None:
    """As by a 403 for the consumed queue."""
    sessions = 0

    async def refused(_: BrokerConnection) -> None:
        nonlocal sessions
        sessions += 1
        raise ConnectionResetError("403: access to the queue is refused")

    health = Health()
    running = keep_connected(amqp_url, name="test", part="consumer", health=health, session=refused)
    try:
        async with asyncio.timeout(2):
            await running
    except TimeoutError:
        assert 2 <= sessions < 30
    assert "403" in (health.fault or "")


async def test_finding_d2_addresses_are_tried_in_turn_without_a_delay(amqp_url: str) -> None:
    urls = ",".join([down(amqp_url)] * 9 + [amqp_url])
    async with asyncio.timeout(5), connect(urls, name="test") as broker:
        assert not broker.connection.is_closed


async def test_finding_d2_a_lost_connection_is_replaced_by_one_to_the_next_address(
    amqp_url: str,
) -> None:
    used: list[int] = []
    async with relay(amqp_url, 1, used) as first, relay(amqp_url, 2, used) as second:

        async def lost(_: BrokerConnection) -> None:
            if len(used) < 4:
                raise ConnectionResetError("the node was killed")

        urls = f"{first},{second}"
        running = keep_connected(urls, name="test", part="p", health=Health(), session=lost)
        await asyncio.wait_for(running, 20)
    assert used in ([1, 2, 1, 2], [2, 1, 2, 1])


@asynccontextmanager
async def relay(amqp_url: str, number: int, used: list[int]) -> AsyncIterator[str]:
    """Yield another address of the broker, and append `number` for each connection to it."""
    target = URL(amqp_url)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        used.append(number)
        there, back = await asyncio.open_connection(target.host, target.port)
        await asyncio.gather(copy(reader, back), copy(there, writer), return_exceptions=True)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield str(target.with_port(server.sockets[0].getsockname()[1]))


async def test_finding_d2_no_password_of_any_address_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    health = Health()

    async def session(_: BrokerConnection) -> None:
        raise AssertionError

    urls = f"{REFUSED},amqp://user:{CANARY}@localhost:1/,amqps://user:{CANARY}@[::1]:1/"
    running = asyncio.create_task(
        keep_connected(urls, name="test", part="consumer", health=health, session=session)
    )
    fault = await until(lambda: health.fault)
    running.cancel()
    assert all(f"no connection to amqp{s}://user:" in fault for s in ("", "s"))
    assert fault.count("no connection to") == 3
    assert CANARY not in fault + caplog.text


async def test_finding_d2_commands_use_any_address_and_show_no_password(
    amqp_url: str,
) -> None:
    urls = f"{down(amqp_url)},{amqp_url}"
    declared = await ringback("topology", "declare", amqp_url=urls)
    doctor = await ringback("doctor", amqp_url=urls)
    assert declared.code == 0, declared.err
    assert "exist at amqp://user:******@127.0.0.1:1/" in declared.out
    assert "no connection to amqp://user:******@127.0.0.1:1/" in doctor.out
    assert "ok     broker: RabbitMQ" in doctor.out
    assert "ok     publishing" in doctor.out
    nowhere = await ringback("doctor", amqp_url=f"{REFUSED},{REFUSED}")
    for output in (declared, doctor, nowhere):
        assert CANARY not in output.out + output.err


async def test_finding_d2_the_producers_of_the_sandbox_use_any_address(amqp_url: str) -> None:
    await ringback("topology", "declare", amqp_url=amqp_url)
    async with running_sandbox(f"{down(amqp_url)},{amqp_url}") as sandbox:
        url = "/api/producers/cinema_scanner"
        async with sandbox.session.post(url, json={}) as response:
            assert response.status == 201, await response.text()
    async with (
        running_sandbox(f"{REFUSED},{REFUSED}") as sandbox,
        sandbox.session.post(url, json={}) as response,
    ):
        assert response.status == 503
        assert CANARY not in await response.text()


async def test_finding_b3_a_mismatch_ends_only_a_part_that_was_never_up(amqp_url: str) -> None:
    health, sessions = Health(), 0

    async def session(_: BrokerConnection) -> None:
        nonlocal sessions
        sessions += 1
        if sessions == 1:
            health.up("p")
            raise ConnectionResetError("the node was killed")
        if sessions == 2:
            raise TopologyMismatchError(["queue 'x' is missing"])

    await asyncio.wait_for(
        keep_connected(amqp_url, name="test", part="p", health=health, session=session), 20
    )
    assert sessions == 3

    async def mismatch(_: BrokerConnection) -> None:
        raise TopologyMismatchError(["queue 'x' is missing"])

    with pytest.raises(TopologyMismatchError):
        await keep_connected(amqp_url, name="test", part="new", health=health, session=mismatch)
