"""What a receiver's answer means, and how long it may ask us to wait. Row 30."""

import time
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.callback.domain import judge
from shared.errors import PermanentError, TransientError
from shared.http.retry_after import parse_retry_after

NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_delivered(status: int) -> None:
    judge(status, None, now=NOW)


def test_410_is_a_refusal_for_good() -> None:
    with pytest.raises(PermanentError, match="410"):
        judge(410, "5", now=NOW)


# H3
@pytest.mark.parametrize(
    "status", [100, 199, 300, 301, 302, 307, 308, 400, 401, 404, 409, 422, 500, 502, 504, 599]
)
def test_h3_anything_else_is_retried_by_the_schedule_alone(status: int) -> None:
    with pytest.raises(TransientError, match=f"^the receiver answered {status}$") as caught:
        judge(status, "30", now=NOW)
    assert caught.value.retry_after == 0


# H3
@pytest.mark.parametrize("status", [429, 503])
def test_h3_who_is_overloaded_says_how_long_to_wait(status: int) -> None:
    with pytest.raises(TransientError) as caught:
        judge(status, "30", now=NOW)
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
        # In the past, far away, or no time at all.
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
def test_row_30_retry_after_is_read_or_bounded(text: str | None, seconds: float) -> None:
    assert parse_retry_after(text, now=NOW) == seconds


def test_row_30_a_date_without_a_zone_is_utc_wherever_we_run(
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
def test_row_30_no_answer_makes_us_wait_longer_than_an_hour(text: str) -> None:
    assert 0 <= parse_retry_after(text, now=NOW) <= 3600


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_row_30_a_date_means_the_seconds_until_then(at: int, now: int) -> None:
    date = format_datetime(datetime.fromtimestamp(at, UTC), usegmt=True)
    assert parse_retry_after(date, now=now) == min(max(at - now, 0), 3600)
