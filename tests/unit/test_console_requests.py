"""The parts of the console's pages about callbacks that are pure, and the feeds of live parts."""

import asyncio
import shlex
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from services.callback.domain import encode_form, encode_json, with_query
from services.console.feeds import END, MAX_WAITING, Feeds
from services.console.fields import given, input_time, number, times
from services.console.kept import curl, wire_request
from services.console.live import event
from services.console.minutes import TARGET_SPANS, attempt_charts, span_of
from shared.http.problem import ProblemError

BERLIN = ZoneInfo("Europe/Berlin")
PAYLOAD = {"b": "it's $HOME & `ls`", "a": ["ä", 1.5, None]}
URL = "https://example.com/hook?x=1"


def test_n6_the_body_is_the_one_that_was_sent() -> None:
    kept: dict[str, Any] = {"target_url": URL, "payload": PAYLOAD, "headers": {"X-Shop": "1"}}
    wire = wire_request("id-1", kept)
    assert wire.body.encode() == encode_json(PAYLOAD)
    assert wire.headers["webhook-id"] == "id-1"
    assert wire.headers["X-Signature"] == "<signature>"
    assert wire_request("id-1", kept | {"format": "form"}).body == encode_form(PAYLOAD)
    query = wire_request("id-1", kept | {"format": "query", "unsigned": True})
    assert query.url == with_query(URL, encode_form(PAYLOAD))
    assert query.body == ""
    assert "X-Signature" not in query.headers


def test_n6_the_command_of_curl_quotes_everything() -> None:
    kept = {
        "target_url": "https://example.com/'$(id)'",
        "target_method": "PUT",
        "payload": PAYLOAD,
        "headers": {"X-Quote": "'; rm -rf / #"},
    }
    words = shlex.split(curl(wire_request("id-1", kept)).replace("\\\n", ""))
    assert words[:4] == ["curl", "--request", "PUT", kept["target_url"]]
    assert words[words.index("--data-raw") + 1].encode() == encode_json(PAYLOAD)
    assert "X-Quote: '; rm -rf / #" in words


def test_times_without_an_offset_are_in_the_zone_of_the_viewer() -> None:
    fields = {"since": "2026-07-01T12:00", "until": "2026-07-01T12:00:00Z", "other": " "}
    assert times(fields, BERLIN, "since", "until", "other") == {
        "since": "2026-07-01T10:00:00+00:00",
        "until": "2026-07-01T12:00:00+00:00",
    }
    assert input_time("2026-07-01T12:00:00Z", BERLIN) == "2026-07-01T14:00:00"
    assert input_time("2026-07-01T12:00", BERLIN) == "2026-07-01T12:00:00"
    assert input_time("soon", BERLIN) == input_time(None, BERLIN) == ""
    for wrong in ("soon", "0001-01-01T00:00"):
        with pytest.raises(ProblemError) as caught:
            times({"since": wrong}, BERLIN, "since")
        assert caught.value.errors[0].field == "since"
    with pytest.raises(ProblemError):
        number("rate", "fast")


def test_empty_fields_are_left_out() -> None:
    assert given({"a": " x ", "b": "  ", "c": object()}, "a", "b", "c", "d") == {"a": "x"}


def test_minutes_become_bars_and_gaps_stay_empty() -> None:
    until = datetime(2026, 11, 20, 12, 30, 40, tzinfo=UTC)
    minutes = [
        {"at": f"2026-11-20T{at}:00Z", "delivered": 2, "failed": 1, "p50": 0.1, "p99": p99}
        for at, p99 in (("12:30", 0.5), ("12:29", None), ("11:31", 0.2), ("11:30", 9.0))
    ]
    attempts, durations = attempt_charts(minutes, until, 60, BERLIN)
    assert len(attempts.rows) == 60
    assert attempts.rows[0] == ["12:31", "2", "1"]
    assert attempts.rows[-1] == ["13:30", "2", "1"]
    assert attempts.rows[1] == ["12:32", "0", "0"]
    assert durations.rows[-1] == ["13:30", "100 ms", "500 ms"]
    assert durations.rows[-2][2] == durations.rows[1][1] == "\N{EN DASH}"
    day, slowest = attempt_charts(minutes, until, 1440, BERLIN)
    assert len(day.rows) == 60
    assert sum(int(row[1]) for row in day.rows) == 8
    assert "9 s" in {row[2] for row in slowest.rows}


def test_spans_are_those_that_pages_offer() -> None:
    assert [span_of(text) for text in (None, "15", "7", "1440")] == [60, 15, 60, 60]
    assert span_of("1440", TARGET_SPANS) == 1440


def test_events_have_a_line_of_data_for_each_line() -> None:
    assert event("a\nb\r\nc") == "data: a\ndata: b\ndata: c\n\n"


class Counter:
    """Counts reads; the value is the count."""

    def __init__(self) -> None:
        self.reads = 0
        self.many = asyncio.Event()

    async def __call__(self) -> int:
        self.reads += 1
        if self.reads == 3 * MAX_WAITING:
            self.many.set()
        if self.reads == 2:
            raise ProblemError(503, "unavailable", "once")  # type: ignore[arg-type]
        return self.reads


async def test_n8_fifty_followers_cost_one_read() -> None:
    feeds, counter = Feeds(interval=0.001), Counter()

    async def follow(number_of_values: int) -> list[int]:
        async with feeds.follow("overview", lambda: counter) as values:
            started.release()
            return [await values.get() for _ in range(number_of_values)]

    started = asyncio.Semaphore(0)
    async with asyncio.timeout(30):
        found = await asyncio.gather(*(follow(3) for _ in range(50)))
    # A failed read is left out, and the next one follows.
    assert {tuple(values) for values in found} == {(1, 3, 4)}
    # Nobody follows any more.
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_n8_a_slow_follower_misses_the_oldest_and_streams_end_at_the_stop() -> None:
    feeds, counter = Feeds(interval=0), Counter()
    async with asyncio.timeout(30), feeds.follow("x", lambda: counter) as values:
        await counter.many.wait()
        assert values.qsize() == MAX_WAITING
        assert await values.get() > 1
        await feeds.close(None)  # type: ignore[arg-type]
        while await values.get() is not END:
            pass
    async with feeds.follow("x", lambda: counter) as values:
        assert values.get_nowait() is END
