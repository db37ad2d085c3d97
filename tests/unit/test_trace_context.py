"""The W3C trace context of requests and messages (https://www.w3.org/TR/trace-context/)."""

import pytest

from shared.contracts.headers import TRACEPARENT, traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("value", [f"00-{TRACE}-{SPAN}-01", f"01-{TRACE}-{SPAN}-03"])
def test_a_valid_trace_context_is_continued(value: str) -> None:
    assert traceparent({TRACEPARENT: value}) == value


@pytest.mark.parametrize(
    "value",
    [
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-extra",
        b"00",
    ],
)
def test_an_invalid_trace_context_is_ignored(value: str | bytes) -> None:
    assert traceparent({TRACEPARENT: value}) is None
