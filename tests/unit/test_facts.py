"""Facts between versions, and the services that own them."""

import json
import re
from datetime import UTC, datetime

import pytest
from pydantic import BaseModel

from shared.amqp.codec import Properties
from shared.amqp.facts import MAX_KEPT_BYTES, fact_messages, owner_messages, parse_facts
from shared.amqp.message import Message
from shared.contracts.facts import FACT_TYPES, CallbackDelivered, Facts
from shared.contracts.message_facts import (
    MESSAGE_FACT_TYPES,
    MessageAttemptFailed,
    MessageFacts,
    MessageSent,
)
from shared.errors import ContractViolationError

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


def batch_of(*facts: object) -> Message:
    properties = Properties(content_type="application/json", type="Facts", app_id="ringback")
    return Message("id", properties, json.dumps({"facts": facts}).encode())


@pytest.mark.parametrize(
    ("model", "types", "fact"),
    [(Facts, FACT_TYPES, DELIVERED), (MessageFacts, MESSAGE_FACT_TYPES, SENT)],
)
def test_n12_facts_of_an_unknown_type_are_ignored_and_logged_once(
    model: type[BaseModel],
    types: frozenset[str],
    fact: BaseModel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    known, unknown = fact.model_dump(mode="json"), {"type": f"{model.__name__}.later", "x": 1}
    assert parse_facts(batch_of(known, unknown, known), model, types) == model(facts=[fact, fact])
    assert parse_facts(batch_of(unknown), model, types) == model(facts=[])
    assert caplog.messages == ["facts of an unknown type ignored"]


@pytest.mark.parametrize("fact", [{**DELIVERED.model_dump(mode="json"), "at": 5e20}, {}, None, 1])
def test_a_malformed_fact_is_an_error_beside_one_of_an_unknown_type(fact: object) -> None:
    with pytest.raises(ContractViolationError, match="facts"):
        parse_facts(batch_of(fact, {"type": "callback.later"}), Facts, FACT_TYPES)
    with pytest.raises(ContractViolationError, match="facts"):
        parse_facts(batch_of(fact), Facts, FACT_TYPES)


def test_the_types_of_facts_are_complete() -> None:
    for model, types in ((Facts, FACT_TYPES), (MessageFacts, MESSAGE_FACT_TYPES)):
        schema = json.dumps(model.model_json_schema())
        assert types == set(re.findall(r'"const": "([^"]+)"', schema))


def test_n7_only_the_journal_gets_requests_and_responses_and_few_in_one_message() -> None:
    quarter = "x" * (MAX_KEPT_BYTES // 4)
    kept = {"owner": "scheduler", "request": quarter, "response": quarter}
    facts = [DELIVERED.model_copy(update=kept) for _ in range(5)]

    to_owner = [Facts.model_validate_json(each.body).facts for each in owner_messages(facts)]
    assert [(fact.request, fact.response) for batch in to_owner for fact in batch] == [
        (None, None)
    ] * 5
    to_journal = [Facts.model_validate_json(each.body).facts for each in fact_messages(facts)]
    assert [len(batch) for batch in to_journal] == [2, 2, 1]
    assert to_journal[0][0].request == kept["request"]


def test_a18_a_fact_that_json_cannot_contain_stops_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An unpaired surrogate is a character of Python, but not of UTF-8."""
    odd = FAILED.model_copy(update={"error": "421 \ud800", "posting_id": "p"})
    impossible = FAILED.model_copy(update={"error": object()})
    [message] = fact_messages([FAILED, odd, impossible])
    sent = MessageFacts.model_validate_json(message.body).facts
    assert [getattr(fact, "error", None) for fact in sent] == ["421", "421 ?"]
    owned = {"owner": "scheduler", "dispatch": 2, "trace_id": "\ud800"}
    [to_owner] = owner_messages([DELIVERED.model_copy(update=owned)])
    assert Facts.model_validate_json(to_owner.body).facts[0].trace_id == "?"
    assert "JSON cannot contain it" in caplog.text
