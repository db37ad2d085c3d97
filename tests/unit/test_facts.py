"""Facts between versions, and the services that own them."""

import json
from datetime import UTC, datetime

import pytest
from pydantic import BaseModel

from shared.amqp.facts import fact_messages, owner_messages
from shared.contracts.facts import CallbackDelivered, Facts
from shared.contracts.message_facts import MessageAttemptFailed, MessageFacts, MessageSent

AT = datetime(2026, 11, 20, 15, tzinfo=UTC)
DELIVERED = CallbackDelivered(
    fact_id="id-1//1",
    at=AT,
    callback_id="id-1",
    client_id=None,
    target=None,
    attempt=1,
    status=200,
    duration=0.1,
)
SENT = MessageSent(
    fact_id="id-2//1",
    at=AT,
    message_id="id-2",
    posting_id="posting",
    channel="email",
    attempt=1,
    duration=0.1,
)
FAILED = MessageAttemptFailed(
    **SENT.model_dump(exclude={"type", "duration"}), error="421", next_at=AT
)


@pytest.mark.parametrize(("batch", "fact"), [(Facts, DELIVERED), (MessageFacts, SENT)])
def test_finding_b15_fields_of_a_newer_version_are_ignored(
    batch: type[BaseModel], fact: BaseModel
) -> None:
    newer = {"facts": [{**fact.model_dump(mode="json"), "added_later": 1}], "version": 2}
    assert batch.model_validate_json(json.dumps(newer)) == batch(facts=[fact])


def test_finding_b2_only_the_owner_gets_the_facts_that_must_arrive() -> None:
    owned = DELIVERED.model_copy(update={"owner": "scheduler", "dispatch": 2})
    without_posting = SENT.model_copy(update={"posting_id": None})
    facts = [DELIVERED, owned, SENT, FAILED, without_posting]
    to_owners = list(owner_messages(facts))
    assert [(each.exchange, each.routing_key, each.mandatory) for each in to_owners] == [
        ("", "mailings.outcomes", True),
        ("", "scheduler.outcomes", True),
    ]
    assert MessageFacts.model_validate_json(to_owners[0].body).facts == [SENT]
    assert Facts.model_validate_json(to_owners[1].body).facts == [owned]
    to_observers = {each.routing_key: each for each in fact_messages(facts)}
    assert to_observers.keys() == {
        "callback.delivered",
        "message.attempt_failed",
        "message.sent",
    }
    assert {each.exchange for each in to_observers.values()} == {"outcomes"}
    assert not any(each.mandatory for each in to_observers.values())
