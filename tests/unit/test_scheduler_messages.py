"""The bodies of notifications: the joined texts are the JSON that a model would produce."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.messages import Dispatch, callback_id, content, payload, send_callback
from shared.contracts.callback import SendCallback
from shared.contracts.schedules import ScheduleCallback

DISPATCH = Dispatch(
    callback_id="0b0c3f0e-5d0b-4a50-9f5c-3b1c3a7b6f10",
    run_at="2026-11-20T15:00:00Z",
    attempt=1,
    expires_at="2026-11-20T16:00:00Z",
    group_key='user "7" é',
    event_key=None,
    occurrence=None,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
CONTEXTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
)


def command(**fields: Any) -> ScheduleCallback:
    given = {"url": "https://a.example.com/x"} | fields
    return ScheduleCallback.model_validate_json(json.dumps(given))


def sent(scheduled: ScheduleCallback, client: str = "", **keywords: Any) -> SendCallback:
    parts = content(scheduled, client, bytes)
    message = (parts.message or b"").decode()
    keywords = {"ticket": None} | keywords
    return SendCallback.model_validate_json(send_callback(message, parts, DISPATCH, **keywords))


@given(CONTEXTS.filter(lambda c: not (isinstance(c, dict) and "retry_params" in c)))
def test_s6_the_envelope_contains_the_context_unchanged(context: Any) -> None:
    if isinstance(context, str) and context.lstrip()[:1] in ("{", "["):
        return
    message = sent(command(context=context))
    assert message.payload == {
        "id": DISPATCH.callback_id,
        "group_key": DISPATCH.group_key,
        "event_key": None,
        "run_at": "2026-11-20T15:00:00Z",
        "attempt": 1,
        "context": context,
    }
    assert message.id == DISPATCH.callback_id
    assert message.unsigned


def test_s6_the_format_context_sends_the_context_alone() -> None:
    scheduled = command(context=[1, {"a": 2}], notify_scheme={"format": "context"})
    assert sent(scheduled).payload == [1, {"a": 2}]


@pytest.mark.parametrize("format_", ["form", "query"])
def test_s6_form_and_query_send_the_envelope_without_null_fields(format_: Any) -> None:
    message = sent(command(notify_scheme={"format": format_, "method": "PUT"}))
    assert (message.format, message.target_method) == (format_, "PUT")
    assert set(message.payload) == {"id", "group_key", "run_at", "attempt"}


def test_the_notification_of_a_recurring_callback_contains_its_occurrence() -> None:
    assert callback_id("abc", 3) == "abc.3"
    parts = content(command(), "", bytes)
    dispatch = Dispatch("abc.3", "t", 1, "t", None, None, 3)
    assert json.loads(payload(parts, dispatch))["occurrence"] == 3


@pytest.mark.parametrize("headers", [{}, {"X-Shop": "7"}])
def test_s9_the_ticket_is_sent_with_the_client_s_own_headers(headers: dict[str, str]) -> None:
    message = sent(
        command(notify_scheme={"headers": headers}), "shop", ticket=("X-Ticket", "a.b.c")
    )
    assert message.headers == headers | {"X-Ticket": "a.b.c"}
    assert message.client_id == "shop"
    assert sent(command(notify_scheme={"headers": headers})).headers == headers


def test_secrets_are_passed_to_the_callback_service() -> None:
    assert sent(command(hmac_secret=["a", "b"])).secrets == ("a", "b")
    assert sent(command(secret_ref="billing")).secret_ref == "billing"


def test_timeout_retries_and_expiry_are_passed_to_the_callback_service() -> None:
    scheduled = command(notify_scheme={"timeout": 3.5}, retry_params={"quick_retries_count": 0})
    message = sent(scheduled)
    assert message.timeout == 3.5
    assert message.retry is not None
    assert message.retry.quick_retries_count == 0
    assert message.expires_at is not None
