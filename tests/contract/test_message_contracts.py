"""The wire format of events, postings, messages, their facts and their requests."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import pytest
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema

from shared.contracts import posting_requests as requests
from shared.contracts.events import Event
from shared.contracts.message_facts import (
    MessageAttemptFailed,
    MessageExpired,
    MessageFacts,
    MessageFailed,
    MessageReturned,
    MessageSent,
    ReasonCode,
)
from shared.contracts.messages import SendEmail, SendSms
from shared.contracts.postings import Posting
from shared.contracts.user_events import UserEvent
from tests.contract.conftest import FOLDER, Golden

MODELS: Final[Mapping[str, type[BaseModel]]] = {
    model.__name__: model for model in (SendEmail, SendSms, Event, Posting, UserEvent)
}
WRITTEN = json.loads((FOLDER / "message_examples.json").read_text())
EXAMPLES = [
    pytest.param(MODELS[name], example["message"], id=f"{name} {case}")
    for name, examples in WRITTEN.items()
    for case, example in examples.items()
]
RECEIVED: Final[tuple[type[BaseModel], ...]] = (
    *MODELS.values(),
    requests.CreatePosting,
    requests.GetPosting,
    requests.ListPostings,
    requests.ListPostingMessages,
)
SENT: Final[tuple[type[BaseModel], ...]] = (
    requests.PostingAccepted,
    requests.PostingStatus,
    requests.Postings,
    requests.PostingMessages,
    MessageFacts,
)

AT = datetime(2026, 11, 20, 15, 0, 0, 123_000, tzinfo=UTC)
EMAIL_FIELDS: Final[Mapping[str, Any]] = {
    "at": AT,
    "message_id": "0b0c3f0e-5d0b-5a50-9f5c-3b1c3a7b6f10",
    "posting_id": "5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11",
    "channel": "email",
}
SMS_FIELDS: Final[Mapping[str, Any]] = {
    "at": AT,
    "message_id": "m-1",
    "posting_id": None,
    "channel": "sms",
}
FACTS = (
    MessageSent(fact_id="m/2", attempt=2, duration=0.25, **EMAIL_FIELDS),
    MessageAttemptFailed(
        fact_id="m/1",
        attempt=1,
        error="451 try again later",
        next_at=datetime(2026, 11, 20, 15, 0, 1, tzinfo=UTC),
        **EMAIL_FIELDS,
    ),
    MessageFailed(
        fact_id="m-1/1",
        attempt=1,
        reason="the gateway refused it",
        code=ReasonCode.REFUSED,
        **SMS_FIELDS,
    ),
    MessageExpired(fact_id="m-1/2", attempt=2, reason="expired", **SMS_FIELDS),
    MessageReturned(
        fact_id="m-2/1",
        attempt=1,
        code=ReasonCode.STOPPED,
        mailing_id="mailing-1",
        recipient_id="client-7",
        **SMS_FIELDS,
    ),
)


def test_every_example_is_parsed_as_recorded(golden: Golden) -> None:
    read = {
        name: {
            case: {
                "message": example["message"],
                "read": MODELS[name]
                .model_validate_json(json.dumps(example["message"]))
                .model_dump(mode="json"),
            }
            for case, example in examples.items()
        }
        for name, examples in WRITTEN.items()
    }
    golden("message_examples", read)


@pytest.mark.parametrize(("model", "example"), EXAMPLES)
def test_a_written_message_is_parsed_back_unchanged(model: type[BaseModel], example: Any) -> None:
    message = model.model_validate_json(json.dumps(example))
    for written in (message.model_dump_json(), message.model_dump_json(exclude_defaults=True)):
        assert model.model_validate_json(written) == message


@pytest.mark.parametrize("name", MODELS)
def test_every_field_has_an_example(name: str) -> None:
    used: set[str] = set().union(*(each["message"] for each in WRITTEN[name].values()))
    assert used == set(MODELS[name].model_fields)


@pytest.mark.parametrize(("model", "example"), EXAMPLES)
def test_an_unknown_field_is_rejected(model: type[BaseModel], example: Any) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        model.model_validate_json(json.dumps(example | {"typing_mistake": 1}))


@pytest.mark.parametrize(
    ("model", "field", "invalid"),
    [
        *(
            (SendEmail, "to", invalid)
            for invalid in ("", "user", "a@b", "a b@c.de", "a@c.de\nBcc: x@y.z")
        ),
        *(
            (SendEmail, "to", invalid)
            for invalid in ('"a"@c.de', "a..b@c.de", "a@-c.de", "a@ä.de", "ä @c.de")
        ),
        *(
            (SendEmail, "to", invalid)
            for invalid in ("<a@c.de>", "a@c.de,b@c.de", "a" * 250 + "@c.de")
        ),
        *((SendEmail, "subject", invalid) for invalid in ("", "a\r\nBcc: x@y.z", "a\nb", "\u0000")),
        (SendEmail, "text", "\u0000"),
        (SendEmail, "html", "x" * 1_048_577),
        *(
            (SendEmail, "unsubscribe_url", invalid)
            for invalid in ("javascript:x", "https://a b", "")
        ),
        (SendEmail, "expires_at", "2026-11-20T15:00:00"),
        *(
            (SendSms, "phone", invalid)
            for invalid in ("+79161234567", "0791612345", "123456", "1" * 16)
        ),
        *((SendSms, "text", invalid) for invalid in ("", "x" * 1601, "\u0000", 7)),
        (SendSms, "id", "two words"),
    ],
)
def test_e6_an_invalid_field_is_named(model: type[BaseModel], field: str, invalid: Any) -> None:
    example = WRITTEN[model.__name__]["all"]["message"]
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(example | {field: invalid}))
    assert [fault["loc"] for fault in caught.value.errors()] == [(field,)]


def test_the_json_of_facts_is_unchanged(golden: Golden) -> None:
    batch = MessageFacts(facts=list(FACTS)).model_dump_json()
    golden("message_facts", json.loads(batch))
    assert MessageFacts.model_validate_json(batch).facts == list(FACTS)


def test_every_fact_has_an_example_and_contains_no_private_data() -> None:
    types: Any = MessageFacts.model_json_schema()["properties"]["facts"]["items"]["discriminator"]
    assert {fact.type for fact in FACTS} == set(types["mapping"])
    for fact in FACTS:
        written = json.loads(fact.model_dump_json())
        assert not {"text", "html", "subject", "to", "phone", "user_id"} & written.keys()
        parsed = MessageFacts.model_validate({"facts": [written | {"phone": "79161234567"}]})
        assert "79161234567" not in parsed.model_dump_json()  # unknown fields are ignored


def test_the_schema_is_unchanged(golden: Golden) -> None:
    _, schema = models_json_schema(
        [(model, "validation") for model in RECEIVED] + [(model, "serialization") for model in SENT]
    )
    golden("message_schema", schema)
