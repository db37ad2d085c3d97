"""Wakes: every gateway learns which users have new events."""

import asyncio
import json
from typing import Any

import pytest

from services.subscriptions.messenger.wakes import WakePublisher
from shared.amqp.publisher import OutgoingMessage, PublishRefusedError
from shared.contracts.user_events import MAX_WAKE_USERS


class Broker:
    """Refuses the first `refused` messages, and confirms the others."""

    def __init__(self, refused: int = 0) -> None:
        self.sent: list[list[int]] = []
        self._refused = refused

    def publish(self, message: OutgoingMessage) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._refused:
            self._refused -= 1
            done.set_exception(PublishRefusedError("an alarm is on"))
            return done
        assert (message.exchange, message.mandatory) == ("user_events.wake", False)
        self.sent.append(json.loads(message.body)["user_ids"])
        done.set_result(None)
        return done


def wakes(broker: Any) -> WakePublisher:
    return WakePublisher(broker)


async def test_users_are_collected_and_large_numbers_are_split() -> None:
    broker = Broker()
    collected = wakes(broker)
    collected.add([3, 1])
    collected.add([3, 2])
    assert await collected.run_once() == 3
    collected.add(range(1, MAX_WAKE_USERS + 3))
    assert [await collected.run_once() for _ in range(2)] == [MAX_WAKE_USERS, 2]
    assert broker.sent[0] == [1, 2, 3]
    assert sorted(id_ for ids in broker.sent[1:] for id_ in ids) == list(
        range(1, MAX_WAKE_USERS + 3)
    )


async def test_users_of_a_message_that_was_not_confirmed_are_published_again() -> None:
    broker = Broker(refused=1)
    collected = wakes(broker)
    collected.add([1])
    with pytest.raises(PublishRefusedError):
        await collected.run_once()
    collected.add([2])
    await collected.drain(5)
    assert broker.sent == [[1, 2]]


async def test_a_stop_publishes_what_is_collected_but_does_not_wait_for_the_broker() -> None:
    collected = wakes(Broker(refused=1_000_000))
    collected.add([1])
    await collected.drain(5)
    idle = wakes(Broker())
    await idle.drain(5)
