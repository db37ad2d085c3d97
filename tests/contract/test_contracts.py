"""The wire format of callbacks and their facts: examples, and a schema that must not drift."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic.json_schema import models_json_schema

from shared.contracts.callback import SendCallback
from shared.contracts.facts import (
    CallbackAttemptFailed,
    CallbackDead,
    CallbackDelivered,
    CallbackDispatchFailed,
    Facts,
)
from tests.contract.conftest import FOLDER, Golden

EXAMPLES = json.loads((FOLDER / "send_callback_examples.json").read_text())
AT = datetime(2026, 11, 20, 15, 0, 0, 123_000, tzinfo=UTC)
FACTS = (
    CallbackDelivered(
        fact_id="id-1/3",
        at=AT,
        callback_id="id-1",
        client_id="shop",
        target="https://example.com:443",
        attempt=3,
        status=204,
        duration=0.25,
    ),
    CallbackAttemptFailed(
        fact_id="id-1/1",
        at=AT,
        callback_id="id-1",
        client_id=None,
        target="http://[2001:db8::1]:8080",
        attempt=1,
        error="the receiver responded with 500",
        next_at=datetime(2026, 11, 20, 15, 0, 1, tzinfo=UTC),
    ),
    CallbackDead(
        fact_id="id-2/1",
        at=AT,
        callback_id="id-2",
        client_id=None,
        target=None,
        attempt=1,
        reason="payload: Field required",
    ),
    CallbackDispatchFailed(
        fact_id="id-3/6",
        at=AT,
        callback_id="id-3",
        client_id="shop",
        target="https://example.com:443",
        attempt=6,
        reason="gave up after 6 attempts: the receiver responded with 500",
        final=False,
        owner="scheduler",
        dispatch=2,
    ),
)


# H1
@pytest.mark.parametrize("name", EXAMPLES)
def test_h1_every_example_is_parsed_as_recorded(name: str) -> None:
    example = EXAMPLES[name]
    command = SendCallback.model_validate_json(json.dumps(example["message"]))
    assert command.model_dump(mode="json") == example["read"]


# H1
@pytest.mark.parametrize("name", EXAMPLES)
def test_h1_a_written_command_is_parsed_back_unchanged(name: str) -> None:
    command = SendCallback.model_validate_json(json.dumps(EXAMPLES[name]["message"]))
    for written in (command.model_dump_json(), command.model_dump_json(exclude_defaults=True)):
        assert SendCallback.model_validate_json(written) == command


def test_h1_every_field_has_an_example() -> None:
    used: set[str] = set().union(*(each["message"] for each in EXAMPLES.values()))
    assert used == set(SendCallback.model_fields)


def test_the_json_of_facts_is_unchanged(golden: Golden) -> None:
    batch = Facts(facts=list(FACTS)).model_dump_json()
    golden("facts", json.loads(batch))
    assert Facts.model_validate_json(batch).facts == list(FACTS)


def test_every_fact_has_an_example() -> None:
    types: Any = Facts.model_json_schema()["properties"]["facts"]["items"]["discriminator"]
    assert {fact.type for fact in FACTS} == set(types["mapping"])


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.type)
def test_finding_b15_facts_ignore_unknown_fields_only(
    fact: CallbackDelivered,
) -> None:
    written = json.loads(fact.model_dump_json())
    parsed = Facts.model_validate({"facts": [written | {"hmac_secret": "s"}]})
    assert "hmac_secret" not in parsed.model_dump_json()
    assert parsed.facts == [fact]
    for name in written:
        with pytest.raises(ValidationError):
            type(fact).model_validate({**written, name: object()})


def test_the_schema_of_callbacks_and_their_facts_is_unchanged(golden: Golden) -> None:
    _, schema = models_json_schema([(SendCallback, "validation"), (Facts, "serialization")])
    golden("schema", schema)
