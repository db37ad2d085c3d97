"""The contracts Event, Posting and UserEvent."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from shared.contracts.context import field_errors
from shared.contracts.durations import seconds
from shared.contracts.events import Event
from shared.contracts.message_types import MESSAGE_TYPES
from shared.contracts.postings import Posting
from shared.contracts.user_events import USER_EVENT, UserEvent
from tests.fakes.ingesting import KNOWN_EVENTS, UUID

USERS = "http://auth/api/v1/users/"
POSTINGS = (
    {
        "from_event": "event_id",
        "receivers": f"{USERS}?is_active=True&email_notifications=True&page_number=1&page_size=500",
        "template": "email/new_movies.md",
        "delivery_type": ["email"],
        "template_context": {"movies": "http://fastapi/api/v1/movies/?new=True"},
    },
    {
        "from_event": "event_id",
        "receivers": f"{USERS}?id={UUID}",
        "template": "email/email_confirmation.md",
        "delivery_type": ["email"],
        "template_context": {"confirmation_link": "http://auth/abcDe4"},
    },
    {
        "from_event": "event_id",
        "receivers": f"{USERS}?id={UUID}",
        "template": "sms/phone_confirmation.md",
        "delivery_type": ["sms"],
        "expires_in": "120 sec",
        "template_context": {"secret_code": "1234"},
    },
)


def faults(model: type[BaseModel], body: str | bytes) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(body)
    return {each.field: each.message for each in field_errors(caught.value)}


@pytest.mark.parametrize("documented", KNOWN_EVENTS, ids=lambda event: event["event"])
def test_e1_the_documented_events_are_valid(documented: dict[str, Any]) -> None:
    event = Event.model_validate_json(json.dumps(documented))
    assert event.model_dump(exclude_unset=True) == documented
    routing_key = f"{documented['from_service']}.{documented['event']}"
    assert MESSAGE_TYPES["Event"].routing_key_of(event) == routing_key


def test_e1_an_event_can_have_an_id_and_times() -> None:
    event = Event.model_validate_json(
        '{"from_service": "a", "event": "b.c", "details": {}, "event_id": "7",'
        ' "occurred_at": "2026-11-20T15:00:00Z", "expires_at": "2026-11-20T18:00:00+02:00"}'
    )
    assert event.occurred_at
    assert event.expires_at
    assert event.expires_at.timestamp() - event.occurred_at.timestamp() == 3600


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"from_service": "a.b"}, "from_service"),
        ({"event": "b."}, "event"),
        ({"event": "b\u0000"}, "event"),
        ({"details": []}, "details"),
        ({"details": {"a": "x\u0000y"}}, "details"),
        ({"event_id": ""}, "event_id"),
        ({"event_id": "two words"}, "event_id"),
        ({"occurred_at": "2026-11-20T15:00:00"}, "occurred_at"),
        ({"expires_at": 5}, "expires_at"),
        ({"detials": {}}, "detials"),
    ],
)
def test_e1_wrong_fields_of_an_event_are_named(change: dict[str, Any], field: str) -> None:
    body = {"from_service": "a", "event": "b", "details": {}} | change
    assert set(faults(Event, json.dumps(body))) == {field}


@pytest.mark.parametrize(
    "value", ["NaN", "1e999999", '"\\ud800"', "[" * 10_000 + "]" * 10_000, '"\\u0000"']
)
def test_row_26_values_that_cannot_be_stored_are_rejected(value: str) -> None:
    body = f'{{"from_service": "a", "event": "b", "details": {{"x": {value}}}}}'
    assert faults(Event, body)


@pytest.mark.parametrize("body", POSTINGS, ids=lambda body: body["template"])
def test_e5_the_documented_postings_are_valid(body: dict[str, Any]) -> None:
    posting = Posting.model_validate_json(json.dumps(body))
    assert posting.model_dump(exclude_unset=True) == body
    assert posting.lifetime == (120 if "expires_in" in body else None)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"receivers": "ftp://auth/users"}, "receivers"),
        ({"template": "../secret.md"}, "template"),
        ({"template": "email/.hidden.md"}, "template"),
        ({"template": "/etc/passwd"}, "template"),
        ({"template": "email/welcome.html"}, "template"),
        ({"delivery_type": []}, "delivery_type"),
        ({"delivery_type": ["email", "email"]}, "delivery_type"),
        ({"delivery_type": "email"}, "delivery_type"),
        ({"delivery_type": ["fax"]}, "delivery_type.0"),
        ({"expires_in": "120"}, "expires_in"),
        ({"template_context": {"a b": 1}}, "template_context.a b.[key]"),
        ({"template_context": {"a": "\u0000"}}, "template_context"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_e5_wrong_fields_of_a_posting_are_named(change: dict[str, Any], field: str) -> None:
    assert set(faults(Posting, json.dumps(POSTINGS[2] | change))) == {field}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("120 sec", 120), ("1 sec", 1), ("5 min", 300), ("2 hours", 7200), ("7 days", 604_800)],
)
def test_a_duration_is_converted_to_seconds(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "120", "sec", "0 sec", "-1 sec", "1.5 min", "1e3 sec", " 1 sec", "1 sec\n", "1  sec"),
        *("1 week", "٣ sec", "01 sec", "9999999 days", "1sec", "1 SEC"),
    ],
)
def test_an_invalid_duration_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be a whole number|longer than ten years"):
        seconds(text)


def test_a_user_event_is_validated() -> None:
    body = {"id": "a1", "user_id": 7, "type": "new_message", "event": {"text": "hello"}}
    assert UserEvent.model_validate_json(json.dumps(body)).model_dump() == body
    assert set(faults(UserEvent, json.dumps(body | {"event": 1, "type": ""}))) == {"event", "type"}


def test_a_long_id_of_a_user_event_is_rejected_as_a_text() -> None:
    body = {"id": "a" * 201, "user_id": 7, "type": "t", "event": {}}
    assert faults(UserEvent, json.dumps(body)) == {
        "id": "String should have at most 200 characters"
    }


@pytest.mark.parametrize("user_id", [7, "7", "007"])
def test_u3_a_user_id_is_an_integer_or_a_string_of_digits(user_id: object) -> None:
    body = {"user_id": user_id, "type": "t", "event": {}}
    event = UserEvent.model_validate_json(json.dumps(body))
    assert event.user_id == 7
    assert MESSAGE_TYPES[USER_EVENT].routing_key_of(event) == "7"


@pytest.mark.parametrize("user_id", ["", "a", "-7", "٣", "7.0", 0, -1, 7.5, True, 1 << 63, None])
def test_another_user_id_is_rejected(user_id: object) -> None:
    body = {"user_id": user_id, "type": "t", "event": {}}
    assert set(faults(UserEvent, json.dumps(body))) == {"user_id"}


# A body of 8 MB had 850,000 errors. To list them took 8 s, 1.4 GB and a response of 81 MB, which
# closes the channel of all other requests.
def test_many_errors_are_counted_but_not_listed() -> None:
    body = json.dumps({f"unknown{n}": 0 for n in range(2000)})
    assert faults(Event, body) == {"": "2003 fields are invalid; at most 100 are listed"}


def test_a_long_path_is_cut() -> None:
    [(field, message)] = faults(
        Event, json.dumps({"from_service": "a", "event": "b", "details": {}, "x" * 9000: 0})
    ).items()
    assert field == "x" * 500 + "…"
    assert message == "Extra inputs are not permitted"
