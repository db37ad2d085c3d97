"""Parsing deliveries: no value in our headers can do harm, because any sender can set them."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.amqp import codec
from shared.amqp.codec import Properties
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.message import Message, parse_delivery
from shared.errors import ContractViolationError

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def parsed(**properties: Any) -> Message:
    header = codec.encode_properties(Properties(**properties), 2)
    return parse_delivery(Delivery(1, redelivered=False, header=header, body=b"{}"))


def test_a_first_delivery_is_the_first_attempt() -> None:
    for message in (parsed(), parsed(headers={}), parsed(headers={"tenant": 7})):
        assert (message.id, message.attempt, message.deferrals) == ("", 1, 0)
        assert (message.first_at, message.not_before) == (0, 0)
        assert message.body == b"{}"


def test_our_headers_carry_the_progress_of_a_message() -> None:
    message = parsed(
        message_id="fresh",
        headers={
            "x-ringback-id": "id-1",
            "x-ringback-attempt": 2,
            "x-ringback-first-at": 1_800_000_000_500,
            "x-ringback-not-before": 1_800_000_007_250,
            "x-ringback-deferrals": 3,
        },
    )
    assert (message.id, message.attempt, message.deferrals) == ("id-1", 3, 3)
    assert (message.first_at, message.not_before) == (1_800_000_000.5, 1_800_000_007.25)


@pytest.mark.parametrize(
    "value", [-1, 0, 2**53, 2**63 - 1, -(2**63), "3", bytearray(b"3"), 2.5, None, [1], {"a": 1}]
)
def test_header_values_that_are_not_valid_are_ignored(value: Any) -> None:
    names = ("attempt", "first-at", "not-before", "deferrals")
    message = parsed(headers={f"x-ringback-{name}": value for name in names})
    assert (message.attempt, message.deferrals) == (1, 0)
    assert (message.first_at, message.not_before) == (0, 0)


# H3: the next copy carries the count incremented, so attempts never start again.
@settings(max_examples=30)
@given(st.integers(0, 2**63 - 1))
@example(2**53 - 3)
@example(2**53 - 2)
@example(2**53 - 1)
@example(2**53)
def test_h3_an_attempt_count_is_never_reset(number: int) -> None:
    names = ("attempt", "first-at", "not-before", "deferrals")
    message = parsed(headers={f"x-ringback-{name}": number for name in names})
    changes = {
        "x-ringback-attempt": message.attempt,
        "x-ringback-deferrals": message.deferrals + 1,
        "x-ringback-first-at": int(message.first_at * 1000),
        "x-ringback-not-before": int(message.not_before * 1000),
    }
    copy = codec.encode_properties(message.copy_properties(changes, message_id="fresh"), 2)
    redelivered = parse_delivery(Delivery(2, redelivered=False, header=copy, body=b"{}"))
    assert redelivered.attempt == min(message.attempt + 1, 2**53 - 1)
    assert redelivered.deferrals == min(message.deferrals + 1, 2**53 - 2)
    assert redelivered.first_at == pytest.approx(message.first_at, abs=0.002)


@pytest.mark.parametrize(
    ("given_id", "plain"),
    [("order-7", "order-7"), ("i" * 255, "i" * 255), ("", "")],
)
def test_a_plain_id_is_kept(given_id: str, plain: str) -> None:
    assert parsed(message_id=given_id).id == plain


@pytest.mark.parametrize("given_id", ["two words", "línea", "a\r\nX-Injected: 1", "\0"])
def test_any_other_id_is_hashed_to_a_header_value(given_id: str) -> None:
    message = parsed(message_id=given_id)
    assert message.id.isascii()
    assert message.id.isalnum()
    assert message.id == parsed(message_id=given_id).id != parsed(message_id=given_id + "2").id


# Logs and requests pass the trace context on.
@pytest.mark.parametrize(
    ("given_trace", "expected"),
    [
        (TRACE, TRACE),
        (None, None),
        (7, None),
        (TRACE.upper(), None),
        (TRACE[:-1], None),
        (TRACE + "\r\nX-Injected: 1", None),
        (TRACE + "\n", None),
        ("", None),
    ],
)
def test_only_a_valid_trace_context_is_passed_on(given_trace: Any, expected: str | None) -> None:
    assert parsed(headers={"traceparent": given_trace}).traceparent == expected
    assert parsed().traceparent is None


def test_a_copy_keeps_the_sender_s_properties_but_not_the_broker_s() -> None:
    message = parsed(
        content_type="application/json",
        type="SendCallback",
        message_id="m-1",
        timestamp=1_800_000_000,
        app_id="shop",
        correlation_id="c-1",
        reply_to="responses",
        priority=3,
        expiration="1000",  # it would let the copy expire in its tier
        user_id="shop",  # the broker accepts only the publisher's own
        delivery_mode=1,
        headers={"tenant": 7, "traceparent": TRACE, "x-death": [{"count": 1}], "CC": ["audit"]},
    )
    message.id = "id-1"
    assert message.copy_properties({"x-ringback-attempt": 1}, message_id="m-2") == Properties(
        content_type="application/json",
        type="SendCallback",
        message_id="m-2",
        timestamp=1_800_000_000,
        app_id="shop",
        correlation_id="c-1",
        reply_to="responses",
        priority=3,
        delivery_mode=2,
        headers={
            "tenant": 7,
            "traceparent": TRACE,
            "x-ringback-id": "id-1",
            "x-ringback-attempt": 1,
        },
    )


@pytest.mark.parametrize(
    ("owner", "dispatch", "expected"),
    [
        ("scheduler", 4, ("scheduler", 4)),
        ("scheduler", None, ("scheduler", 0)),
        ("unknown", 4, (None, None)),
        (["scheduler"], 4, (None, None)),
        (None, 4, (None, None)),
    ],
)
def test_only_known_services_own_messages(
    owner: Any, dispatch: Any, expected: tuple[str | None, int | None]
) -> None:
    message = parsed(headers={"x-ringback-owner": owner, "x-ringback-dispatch": dispatch})
    assert (message.owner, message.dispatch) == expected


def test_a_timestamp_in_milliseconds_is_a_violation() -> None:
    assert Message("a", Properties(timestamp=1_800_000_000), b"").sent_at == 1_800_000_000
    assert Message("a", Properties(), b"").sent_at is None
    for timestamp in (1_800_000_000_000, 2**64 - 1):
        with pytest.raises(ContractViolationError, match="is not in epoch seconds"):
            _ = Message("a", Properties(timestamp=timestamp), b"").sent_at
