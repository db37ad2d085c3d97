"""Times, durations and counts on the pages of the console."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from services.console.formatting import (
    DASH,
    ago,
    count,
    duration,
    moment,
    share,
    size,
    zone_of,
)

BERLIN = ZoneInfo("Europe/Berlin")


def test_a_time_is_shown_in_the_zone_of_the_viewer_and_in_utc() -> None:
    shown = moment("2026-07-01T10:00:00.250Z", BERLIN)
    assert shown.iso == "2026-07-01T10:00:00.250Z"
    assert shown.local == "2026-07-01 12:00:00.250 CEST"
    assert shown.utc == "2026-07-01 10:00:00.250 UTC"
    assert shown.both == "2026-07-01 12:00:00.250 CEST (2026-07-01 10:00:00.250 UTC)"


def test_a_time_in_utc_is_shown_once() -> None:
    assert moment(0, ZoneInfo("UTC")).both == "1970-01-01 00:00:00 UTC"


def test_the_hour_that_exists_twice_is_unambiguous() -> None:
    first = moment("2026-10-25T00:30:00Z", BERLIN).local
    second = moment("2026-10-25T01:30:00Z", BERLIN).local
    assert (first, second) == ("2026-10-25 02:30:00 CEST", "2026-10-25 02:30:00 CET")


@pytest.mark.parametrize(
    "name", [None, "", "Mars/Base", "../../etc/passwd", "/etc/passwd", "x" * 99, "\x00", "Europe"]
)
def test_an_unknown_zone_is_none(name: str | None) -> None:
    assert zone_of(name) is None


def test_a_known_zone_is_found() -> None:
    assert zone_of("Europe/Berlin") == BERLIN


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, DASH),
        (0, "0 ms"),
        (0.0004, "0.4 ms"),
        (0.0123, "12 ms"),
        (0.999, "999 ms"),
        (1, "1 s"),
        (12.34, "12.3 s"),
        (60, "1 min"),
        (303, "5 min 3 s"),
        (7500, "2 h 5 min"),
        (90_000, "1 d 1 h"),
        (timedelta(days=2), "2 d"),
    ],
)
def test_durations(seconds: float | timedelta | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "now"), (5, "5 s ago"), (90, "1 min ago"), (7200, "2 h ago"), (-300, "in 5 min")],
)
def test_ago(seconds: float, text: str) -> None:
    now = datetime(2026, 11, 20, tzinfo=UTC)
    assert ago(now - timedelta(seconds=seconds), now) == text


def test_counts_shares_and_sizes() -> None:
    assert count(1_234_567) == "1\u202f234\u202f567"
    assert (count(0), count(2.5), count(None)) == ("0", "2.5", DASH)
    assert (share(1, 4), share(1, 3), share(1, 100_000), share(0, 0)) == (
        *("25 %", "33.3 %"),
        *("< 0.1 %", DASH),
    )
    assert (size(512), size(1434), size(3 << 20), size(None)) == ("512 B", "1.4 KiB", "3 MiB", DASH)
