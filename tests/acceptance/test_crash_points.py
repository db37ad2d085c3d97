"""Killed with -9 at any point: at worst a repeat with the same webhook-id, never a loss."""

from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from services.sandbox.misbehaviour import response
from tests.acceptance.crashing import POINTS
from tests.fakes.broker_client import broker_client, send_callback
from tests.fakes.receivers import ClientConnection, serve
from tests.fakes.service import running
from tests.fakes.waiting import until

# Delivered at once, delivered by the second attempt, dead-lettered.
KINDS = ("good", "fails-once", "gone")


@pytest.mark.parametrize("point", POINTS)
async def test_a_crash_at_any_point_repeats_at_most_once_and_loses_nothing(
    amqp_url: str, tmp_path: Path, point: str
) -> None:
    seen: Counter[str] = Counter()

    async def receive(connection: ClientConnection) -> None:
        while True:
            request = await connection.request()
            callback = request.headers["webhook-id"]
            seen[callback] += 1
            fails = callback.startswith("fails-once") and seen[callback] == 1
            status = 410 if callback.startswith("gone") else 500 if fails else 200
            await connection.write(response(status))

    async with AsyncExitStack() as stack:
        target = await stack.enter_async_context(serve(receive))
        crash = ("-m", "tests.acceptance.crashing", point)
        dying = stack.enter_context(running(tmp_path, amqp_url, arguments=crash))
        await until(lambda: dying.logged("consumer is ready"))
        publisher = await stack.enter_async_context(broker_client(amqp_url))
        without_id = send_callback(target.url)
        del without_id["id"]
        await publisher.send_without_message_id(without_id)
        ids = await publisher.send_all(
            send_callback(target.url, id=f"{kind}-{number}", retry={"delays": [1]})
            for number in range(5)
            for kind in KINDS
        )
        assert await dying.exit_code() == -9, dying.output
        before = seen.copy()

        with running(tmp_path, amqp_url) as second:
            await second.ready()
            ends = ("callback.delivered", "callback.dead")
            await until(
                lambda: {f["callback_id"] for f in publisher.facts if f["type"] in ends} >= set(ids)
            )
            letters = await publisher.read_dead_letters()
            dead = {str(letter.headers["x-ringback-id"]) for letter in letters}
            for callback in ids:
                kind, _, _ = callback.rpartition("-")
                assert (callback in dead) == (kind == "gone")
                usual = 2 if kind == "fails-once" else 1
                # a callback in flight when the process died is repeated once
                assert usual <= seen[callback] <= usual + 1, callback
            assert seen.keys() - set(ids), "the message without an id was delivered, too"
            assert before.keys() <= seen.keys()
            assert await publisher.length("callbacks") == 0
