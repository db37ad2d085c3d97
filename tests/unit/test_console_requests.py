"""The parts of the console's pages about callbacks that are pure, and the feeds of live parts."""

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from services.callback.domain import encode_form, encode_json, with_query
from services.console.feeds import END, MAX_WAITING, Feeds
from services.console.kept import curl, wire_request
from services.console.live import event
from services.console.minutes import TARGET_SPANS, attempt_charts, span_of
from services.console.pages.tail import MAX_BEHIND, PAGE_SIZE, News, Received, reader
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


class Recorded:
    """A journal with entries that are numbered from 1, and the filter of a tail that all match."""

    def __init__(self) -> None:
        self.last = 7
        self.more_meanwhile = 0

    async def __call__(self, body: Mapping[str, Any]) -> Any:
        if "after" not in body:
            return {"items": [], "seq": self.last}
        first = body["after"] + 1
        seqs = list(range(first, min(self.last + 1, first + body["limit"])))
        self.last += self.more_meanwhile
        return {"items": [{"seq": seq} for seq in seqs], "seq": seqs[-1] if seqs else first - 1}


async def test_n6_the_tail_says_how_many_entries_it_leaves_out() -> None:
    recorded = Recorded()
    read = reader(recorded, {"target": "https://example.com"})

    async def seen() -> tuple[list[int], int]:
        news = await read()
        return [entry["seq"] for entry in news.entries], news.left_out

    assert not await read()  # only what follows is shown
    assert await seen() == ([], 0)
    recorded.last += PAGE_SIZE
    assert await seen() == (list(range(8, 8 + PAGE_SIZE)), 0)
    recorded.last += PAGE_SIZE + MAX_BEHIND
    shown, left_out = await seen()
    assert (len(shown), left_out) == (PAGE_SIZE, 0)
    # As many as that can be behind. They follow.
    assert await seen() == (list(range(shown[-1] + 1, recorded.last + 1)), 0)
    before = recorded.last
    recorded.last += 5000
    assert await seen() == (list(range(before + 1, before + 1 + PAGE_SIZE)), 5000 - PAGE_SIZE)
    assert not await read()
    # What is recorded between the two reads is not left out.
    recorded.last += 1
    recorded.more_meanwhile = 3
    assert await seen() == ([before + 5001], 0)
    recorded.more_meanwhile = 0
    assert await seen() == ([before + 5002, before + 5003, before + 5004], 0)
    assert News((), 5)


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


async def test_n6_a_browser_that_receives_too_slowly_is_told_what_it_has_missed() -> None:
    recorded, received = Recorded(), Received()
    many = asyncio.Event()

    def read() -> Callable[[], Awaitable[News]]:
        news, count = reader(recorded, {}), 0

        async def counted() -> News:
            nonlocal count
            found = await news()
            recorded.last += count % 3  # sometimes there is nothing new
            count += 1
            if count == 4 * MAX_WAITING:
                many.set()
            return found

        return counted

    shown, missed = list[int](), 0
    async with asyncio.timeout(30), Feeds(interval=0).follow("tail", read) as values:
        assert received.missed_before(await values.get()) == 0
        await many.wait()
        for _ in range(2 * MAX_WAITING):
            news = await values.get()
            gap = received.missed_before(news)
            missed += gap
            last = shown[-1] if shown else 7
            assert not news or news.entries[0]["seq"] == last + gap + 1
            shown += [entry["seq"] for entry in news.entries]
    assert missed
    assert shown[-1] - 7 == len(shown) + missed


async def test_n8_a_live_part_goes_on_after_a_bug_and_after_a_value_of_another_version(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reads = 0

    async def read() -> int:
        nonlocal reads
        reads += 1
        return reads if reads > 1 else dict[str, int]()["new"]

    async with asyncio.timeout(30), Feeds(interval=0.001).follow("x", lambda: read) as values:
        assert await values.get() == 2
    assert [record.message for record in caplog.records] == ["bug in a live part"]


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
