"""Dead letters are shown without secrets."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.dead import _row
from shared.amqp import codec
from shared.amqp.codec import Properties
from shared.amqp.dead_letters import (
    HIDDEN,
    MAX_DEPTH,
    DeadLetter,
    letter_dead,
    origin,
    parse_dead_letter,
    redacted,
)
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.message import Message
from shared.security.jwks import shared_key
from shared.security.tickets import TicketIssuer

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
CANARY = "1f8e-canary"
SECRET_NAMES = st.sampled_from(
    ["hmac_secret", "password", "Authorization", "api_key", "X-Api-Key", "accessToken", "Cookie"]
)


@given(before=JSON, name=SECRET_NAMES, depth=st.integers(0, 4))
def test_no_secret_is_shown_at_any_depth(before: Any, name: str, depth: int) -> None:
    body: Any = {name: [CANARY, CANARY], "other": before}
    for _ in range(depth):
        body = {"nested": [body, before]}

    assert CANARY not in json.dumps(redacted(body))


# A ticket is valid for hours, and the name of its header is a setting.
@pytest.mark.parametrize("name", ["x-service-ticket", "X-Ya-Service-Ticket", "X-Caller"])
def test_no_ticket_is_shown(name: str) -> None:
    ticket = TicketIssuer(shared_key("k" * 32)).issue("shop", lifetime=60)

    assert redacted({"headers": {name: ticket}}) == {"headers": {name: HIDDEN}}


@given(JSON)
def test_other_values_are_shown_unchanged(value: Any) -> None:
    body = {"payload": {"plain": "text", "number": 7}, "secret_ref": "billing"}

    assert redacted(body) == body
    json.dumps(redacted(value))  # anything can be shown


def test_a_url_is_shown_without_its_user_and_query_values() -> None:
    url = f"https://me:{CANARY}@example.com/a/b?key={CANARY}&x"

    shown = redacted(url)

    assert CANARY not in shown
    assert "example.com/a/b?key=" in shown


def test_a_malformed_url_is_not_shown() -> None:
    assert redacted(f"http://[{CANARY}") == HIDDEN


def dead_letter(body: Any = None, **headers: Any) -> DeadLetter:
    properties = Properties(headers={name.replace("_", "-"): v for name, v in headers.items()})
    header = codec.encode_properties(properties, 0)
    content = json.dumps(body).encode()
    return parse_dead_letter(Delivery(tag=1, redelivered=False, header=header, body=content))


# Anyone can publish to a dead-letter queue. One message must not hide all others.
@pytest.mark.parametrize(
    "headers",
    [
        {"x_death": [{"time": "yesterday", "reason": 7}]},
        {"x_death": [{"time": [1], "reason": None}]},
        {"x_death": ["expired"]},
        {"x_ringback_died_at": 2**62},
        {"x_ringback_died_at": -(2**62)},
        {"x_ringback_died_at": "now", "x_ringback_attempt": "three", "x_ringback_reason": 5},
    ],
)
def test_a_letter_with_forged_headers_is_shown(headers: dict[str, Any]) -> None:
    letter = dead_letter(**headers)
    assert letter.summary()["died_at"] is None
    assert json.dumps(letter.details())
    assert _row(letter)


def test_a_letter_cannot_control_the_terminal() -> None:
    letter = dead_letter(
        {"id": "\x1b]52;c;eA==\x07", "target_url": "http://a"}, x_ringback_reason="b\x9b2J\nc"
    )
    row = _row(letter)
    assert row.isprintable()
    assert "\\x1b]52;c;eA==\\x07" in row
    assert row.endswith("b\\x9b2J c")


def test_a_body_that_is_nested_deeply_is_shown() -> None:
    body: Any = "bottom"
    for _ in range(800):
        body = [{"a": body}]
    shown = json.dumps(redacted(body), indent=2)
    assert HIDDEN in shown
    assert shown.count("[") <= MAX_DEPTH


@pytest.mark.parametrize("value", ["\ud800", "a\0b", "x" * 9000])
def test_what_a_fact_or_an_index_cannot_hold_is_left_out(value: str) -> None:
    body = json.dumps({"client_id": value, "id": value, "target_url": f"https://{value}:1/"})
    message = Message("known", Properties(), body.encode())
    fact = letter_dead("callbacks", message, letter_id="a" * 32, reason="r", at=1.0)
    assert (fact.client_id, fact.target) == (None, None)
    assert fact.model_dump_json()
    letter = DeadLetter(message, "r", 1.0, None, None, json.loads(body))
    assert (letter.id, letter.client_id) == ("known", None)
    assert origin("x" * 9000 + "://host:1/") is None
