"""Rules for every queue: no message is lost between queues, and none waits forever."""

import json
from pathlib import Path

import pytest

from shared.topology import (
    CALLBACKS,
    DELIVERY_LIMIT,
    TIERS,
    QueueType,
    dead_queue,
    tier_queue,
    topology,
    work_queue_of,
)

# The table itself has golden files in tests/contract, and so have the reasons for its arguments.
REASONS = Path(__file__).parents[1] / "contract" / "golden" / "topology.reasons.json"


def test_every_queue_argument_has_a_reason() -> None:
    used = {name for queue in topology().queues for name in queue.arguments}
    reasons = json.loads(REASONS.read_text())
    assert set(reasons) == used
    assert all(len(reason) > 20 for reason in reasons.values())


# H3
def test_h3_every_tier_returns_messages_to_its_work_queue_after_its_ttl() -> None:
    queues = {queue.name: queue for queue in topology().queues}
    for tier in TIERS:
        queue = queues[f"callbacks.retry.{tier.name}"]
        assert queue.arguments["x-message-ttl"] == tier.seconds * 1000
        assert queue.arguments["x-dead-letter-exchange"] == ""
        assert queue.arguments["x-dead-letter-routing-key"] == queue.dead_letters_to == CALLBACKS


def test_trap_8_all_dead_lettering_is_at_least_once() -> None:
    for queue in topology().queues:
        if "x-dead-letter-routing-key" in queue.arguments:
            assert queue.arguments["x-dead-letter-strategy"] == "at-least-once"
            assert queue.arguments["x-overflow"] == "reject-publish"
            assert queue.arguments["x-queue-type"] == "quorum"


def test_a_message_that_kills_its_workers_is_dead_lettered() -> None:  # row 13
    queues = {queue.name: queue for queue in topology().queues}
    assert queues[CALLBACKS].arguments["x-delivery-limit"] == DELIVERY_LIMIT
    assert queues[CALLBACKS].arguments["x-dead-letter-routing-key"] == "callbacks.dead"
    assert queues[CALLBACKS].dead_letters_to == "callbacks.dead"


@pytest.mark.parametrize("queue_type", QueueType)
def test_nothing_expires_in_a_dead_letter_queue(queue_type: QueueType) -> None:
    for queue in topology(queue_type).queues:
        if queue.name.endswith(".dead"):
            assert not {"x-message-ttl", "x-dead-letter-exchange", "x-max-length", "x-expires"} & (
                queue.arguments.keys()
            )


def test_every_queue_that_dead_letters_has_an_existing_target() -> None:
    tables = topology()
    names = {queue.name for queue in tables.queues}
    assert len(names) == len(tables.queues)
    for queue in tables.queues:
        target = queue.arguments.get("x-dead-letter-routing-key")
        assert target == queue.dead_letters_to
        assert target is None or target in names


def test_queue_names_follow_the_public_interface() -> None:
    assert tier_queue("Q", TIERS[1]) == "Q.retry.5s"
    assert dead_queue("Q") == "Q.dead"
    for work in (CALLBACKS, "messages.email"):
        names = [work, dead_queue(work), *(tier_queue(work, tier) for tier in TIERS)]
        assert {work_queue_of(name) for name in names} == {work}


def test_a_service_declares_its_own_queues_and_all_exchanges() -> None:
    tables = topology()
    own = tables.only([CALLBACKS])
    assert own.exchanges == tables.exchanges
    assert {work_queue_of(queue.name) for queue in own.queues} == {CALLBACKS}
    assert len(own.queues) == 1 + len(TIERS) + 1
    assert tables.only([]).queues == ()
