"""The meaning of a receiver's response and of `Retry-After`. H3, row 30."""

import time
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.callback.domain import check_response
from shared.errors import PermanentError, TransientError
from shared.http.retry_after import parse_retry_after

NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_status_means_delivered(status: int) -> None:
    check_response(status, None, now=NOW)


def test_410_is_a_permanent_error() -> None:
    with pytest.raises(PermanentError, match="410"):
        check_response(410, "5", now=NOW)


# H3
@pytest.mark.parametrize(
    "status", [100, 199, 300, 301, 302, 307, 308, 400, 401, 404, 409, 422, 500, 502, 504, 599]
)
def test_h3_any_other_status_is_retried_by_the_retry_policy(status: int) -> None:
    with pytest.raises(TransientError, match=f"^the receiver responded with {status}$") as caught:
        check_response(status, "30", now=NOW)
    assert caught.value.retry_after == 0


# H3
@pytest.mark.parametrize("status", [429, 503])
def test_h3_retry_after_of_an_overloaded_receiver_is_honoured(status: int) -> None:
    with pytest.raises(TransientError) as caught:
        check_response(status, "30", now=NOW)
    assert caught.value.retry_after == 30


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, 0),
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        ("007", 7),
        ("3600", 3600),
        ("Sun, 06 Nov 1994 08:50:37 GMT", 60),
        ("Sunday, 06-Nov-94 08:50:37 GMT", 60),
        ("Sun Nov  6 08:50:37 1994", 60),
        ("Sun, 06 Nov 1994 09:50:37 +0100", 60),
        ("Sun, 06 Nov 1994 08:50:37 -0000", 60),
        # In the past, far in the future, or not valid.
        ("Sun, 06 Nov 1994 08:48:37 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600),
        ("3601", 3600),
        ("9" * 5000, 3600),
        ("0" * 5000 + "5", 0),
        ("-5", 0),
        ("1e9", 0),
        ("5.5", 0),
        ("٣", 0),
        ("²", 0),
        ("", 0),
        ("soon", 0),
        ("Sun, 06 Nov 99999 08:50:37 GMT", 0),
        ("Sun, 99 Nov 1994 08:50:37 GMT", 0),
        ("Sun, 06 Nov 1994 08:50:37 +999999", 0),
    ],
)
def test_row_30_retry_after_is_parsed_and_limited(text: str | None, seconds: float) -> None:
    assert parse_retry_after(text, now=NOW) == seconds


def test_row_30_a_date_without_a_zone_is_utc_in_any_local_zone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert parse_retry_after("Sun Nov  6 08:50:37 1994", now=NOW) == 60
    finally:
        monkeypatch.undo()
        time.tzset()


@settings(max_examples=40)
@given(
    st.text(max_size=20) | st.text("MonJaGT0123456789 :,.+-", max_size=40) | st.integers().map(str)
)
@example("Mon, 0 Jan 0 0:0:0 GMT")
def test_row_30_no_retry_after_is_longer_than_an_hour(text: str) -> None:
    assert 0 <= parse_retry_after(text, now=NOW) <= 3600


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_row_30_a_date_is_converted_to_the_seconds_until_then(at: int, now: int) -> None:
    date = format_datetime(datetime.fromtimestamp(at, UTC), usegmt=True)
    assert parse_retry_after(date, now=now) == min(max(at - now, 0), 3600)
