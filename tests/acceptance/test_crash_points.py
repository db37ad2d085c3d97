"""A kill at any point repeats an attempt at most once, with the same id, and loses nothing."""

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
    attempts: Counter[str] = Counter()

    async def receive(connection: ClientConnection) -> None:
        while True:
            request = await connection.request()
            callback = request.headers["webhook-id"]
            attempts[callback] += 1
            fails = callback.startswith("fails-once") and attempts[callback] == 1
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
        owner = {"x-ringback-owner": "scheduler", "x-ringback-dispatch": 1}
        owned = send_callback(target.url, id="good-owned")
        ids.append(await publisher.send(owned, headers=owner | {"x-ringback-id": "good-owned"}))
        assert await dying.exit_code() == -9, dying.output
        before = attempts.copy()

        with running(tmp_path, amqp_url) as second:
            await second.ready()
            final_types = ("callback.delivered", "callback.dead")
            await until(
                lambda: (
                    {f["callback_id"] for f in publisher.facts if f["type"] in final_types}
                    >= set(ids)
                )
            )
            dead_letters = await publisher.read_dead_letters()
            dead = {str(dead_letter.headers["x-ringback-id"]) for dead_letter in dead_letters}
            for callback in ids:
                kind, _, _ = callback.rpartition("-")
                assert (callback in dead) == (kind == "gone")
                expected = 2 if kind == "fails-once" else 1
                # a callback in flight when the process died is repeated once
                assert expected <= attempts[callback] <= expected + 1, callback
            assert attempts.keys() - set(ids), "the message without an id was delivered, too"
            assert before.keys() <= attempts.keys()
            assert await publisher.length("callbacks") == 0
