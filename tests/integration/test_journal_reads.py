"""N6: reading and searching the journal, on a real database."""

from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import product
from json import dumps
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.journal.attempts import store as attempts_store
from services.journal.reading import reading
from shared.amqp.rpc import RequestContext
from shared.contracts.facts import (
    CallbackAttemptFailed,
    CallbackDead,
    CallbackDispatchFailed,
)
from shared.contracts.journal_facts import CallbackReplayed, LetterRedriven
from shared.contracts.message_facts import MessageSent
from shared.contracts.requests import Failure, FailureCode
from shared.contracts.schedule_facts import ScheduleCreated, ScheduleDispatched, ScheduleFact
from tests.fakes.journal import TARGET, delivered
from tests.fakes.journal_reads import CIPHER, OPERATOR, Reads, journal_reads

SHOP, OTHER, ANONYMOUS = RequestContext("shop"), RequestContext("other"), RequestContext()
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
async def reads(database_url: str) -> AsyncIterator[Reads]:
    async with journal_reads(database_url) as handlers:
        yield handlers


def failed(**fields: Any) -> CallbackAttemptFailed:
    given = delivered().model_dump(exclude={"type", "status"})
    given |= {"error": "responded with status 503", "status": 503, "next_at": NOW}
    return CallbackAttemptFailed(**given | fields)


def dead(**fields: Any) -> CallbackDead:
    given = delivered().model_dump(exclude={"type", "status"})
    return CallbackDead(**given | {"reason": "responded with status 410", "status": 410} | fields)


def dispatch_failed(**fields: Any) -> CallbackDispatchFailed:
    given = delivered().model_dump(exclude={"type", "status"}) | {"owner": "scheduler"}
    return CallbackDispatchFailed(**given | {"reason": "timed out", "final": False} | fields)


def story(schedule_id: UUID, client_id: str | None, *, occurrence: int | None = None) -> list[Any]:
    """Return the facts of a scheduled callback: a failed dispatch, a main retry, a delivery."""
    callback_id = str(schedule_id) if occurrence is None else f"{schedule_id}.{occurrence}"
    own: dict[str, Any] = {
        "schedule_id": schedule_id,
        "client_id": client_id,
        "group_key": "user-7",
        "event_key": f"reminder-{schedule_id}",
    }
    sent: dict[str, Any] = {
        "callback_id": callback_id,
        "client_id": client_id,
        "owner": "scheduler",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
    }

    def at(second: float) -> dict[str, Any]:
        return {"fact_id": uuid4().hex, "at": NOW - timedelta(seconds=60 - second)}

    ended: dict[str, Any] = {"occurrence": occurrence, "attempts": 2, "error": None}
    return [
        ScheduleCreated(**own, **at(0), run_at=NOW, target=TARGET, recurs=occurrence is not None),
        ScheduleDispatched(**own, **at(1), callback_id=callback_id, dispatch=1, lag=0.01),
        dispatch_failed(**sent, **at(2), dispatch=1),
        ScheduleFact(
            **own, **ended | {"error": "timed out"}, **at(3), type="schedule.retrying", next_at=NOW
        ),
        ScheduleDispatched(**own, **at(4), callback_id=callback_id, dispatch=2, lag=0.01),
        delivered(**sent, **at(5), dispatch=2),
        ScheduleFact(**own, **ended, **at(6), type="schedule.notified", next_at=None),
    ]


async def test_n6_the_attempts_of_a_callback_have_exactly_the_promised_fields(
    reads: Reads,
) -> None:
    schedule_id = uuid4()
    response = b64encode(CIPHER.encrypt("päckchen".encode())).decode()
    await reads.add(story(schedule_id, "shop"))
    await reads.add([delivered(callback_id="invoice-7", response=response, attempt=3, at=NOW)])
    page = await reads("ReadAttempts", SHOP, id="invoice-7")
    assert page == {
        "items": [
            {
                "at": NOW.isoformat().replace("+00:00", "Z"),
                "attempt": 3,
                "target": TARGET,
                "status_code": 200,
                "duration": 0.02,
                "outcome": "delivered",
                "reason": None,
                "response": "päckchen",
            }
        ],
        "next_cursor": None,
    }
    for id_ in (str(schedule_id), str(schedule_id).upper()):
        page = await reads("ReadAttempts", SHOP, id=id_)
        outcomes = [item["outcome"] for item in page["items"]]
        assert outcomes == ["dispatch_failed", "delivered"], id_


async def test_n6_a_client_sees_only_its_own_callbacks_and_an_operator_sees_all(
    reads: Reads,
) -> None:
    schedule_id = uuid4()
    await reads.add(story(schedule_id, "shop"))
    await reads.add([delivered(callback_id="same", client_id=client) for client in ("shop", None)])
    for operation, id_ in product(("ReadAttempts", "ReadTimeline"), (str(schedule_id), "same")):
        refused = await reads(operation, OTHER, id=id_)
        assert isinstance(refused, Failure)
        assert refused.code is FailureCode.NOT_FOUND
    for context, count in ((SHOP, 1), (ANONYMOUS, 1), (OPERATOR, 2)):
        found = await reads("ReadAttempts", context, id="same")
        assert len(found["items"]) == count, context
        timeline = await reads("ReadTimeline", context, id="same")
        assert len(timeline["items"]) == count, context
    for context, clients in (
        (SHOP, {"shop"}),
        (OTHER, set()),
        (ANONYMOUS, {None}),
        (OPERATOR, {"shop", None}),
    ):
        page = await reads("ListAttempts", context)
        assert {item["client_id"] for item in page["items"]} == clients
        keyed = await reads("ListAttempts", context, group_key="user-7")
        assert {item["client_id"] for item in keyed["items"]} == clients - {None}
    refused = await reads("ListAttempts", OTHER, client_id="shop")
    assert refused.code is FailureCode.FORBIDDEN


async def test_n6_only_operators_read_figures_the_tail_clients_and_the_audit_log(
    reads: Reads,
) -> None:
    requests: dict[str, dict[str, Any]] = {
        "ListTargets": {},
        "ReadTarget": {"target": TARGET},
        "Tail": {},
        "ListClientIds": {},
        "ListAudit": {},
        "RecordAudit": {"action": "cheat"},
    }
    for operation, request in requests.items():
        for context in (SHOP, ANONYMOUS, RequestContext("operator")):
            refused = await reads(operation, context, **request)
            assert isinstance(refused, Failure), operation
            assert refused.code is FailureCode.FORBIDDEN
    page = await reads("ListAudit", OPERATOR)
    assert page["items"] == []


async def test_n6_the_timeline_has_every_step_and_earlier_ones_by_cursor(
    reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule_id = uuid4()
    facts = story(schedule_id, "shop")
    replayed = CallbackReplayed(
        fact_id="r",
        at=NOW,
        callback_id=str(schedule_id),
        client_id="shop",
        target=TARGET,
        actor="Ada",
        replay="job",
    )
    again = delivered(callback_id=str(schedule_id), at=NOW + timedelta(seconds=1))
    moved = LetterRedriven(
        fact_id="m",
        at=NOW + timedelta(seconds=2),
        queue="callbacks",
        letter_id="l",
        logical_id=str(schedule_id),
        actor="Omar",
    )
    await reads.add([*facts, replayed, again, moved])
    expected = [
        *("scheduled", "dispatched", "attempt", "retry", "dispatched", "attempt", "notified"),
        *("replayed", "attempt", "redriven"),
    ]
    timeline = await reads("ReadTimeline", SHOP, id=str(schedule_id))
    assert [step["kind"] for step in timeline["items"]] == expected
    assert timeline["items"][-1]["text"] == "Moved back to its work queue."
    assert "Ada" not in dumps(timeline)
    assert (timeline["next_cursor"], timeline["kept"], timeline["gaps"]) == (None, False, [])
    timeline = await reads("ReadTimeline", OPERATOR, id=str(schedule_id))
    assert timeline["items"][-1]["text"] == "Moved back to its work queue by Omar."
    assert timeline["items"][7]["text"] == f"Sent again to {TARGET} by Ada."

    monkeypatch.setattr("services.journal.attempts.requests.MAX_TIMELINE", 4)
    pages: list[list[str]] = []
    cursor = None
    while cursor is not None or not pages:
        page = await reads("ReadTimeline", SHOP, id=str(schedule_id), cursor=cursor)
        pages.insert(0, [step["kind"] for step in page["items"]])
        cursor = page["next_cursor"]
    assert len(pages) == 3
    assert [kind for page in pages for kind in page] == expected


async def test_n6_an_occurrence_has_its_own_timeline(reads: Reads) -> None:
    schedule_id = uuid4()
    await reads.add(story(schedule_id, "shop", occurrence=1))
    await reads.add(story(schedule_id, "shop", occurrence=2)[1:])
    whole = await reads("ReadTimeline", SHOP, id=str(schedule_id))
    assert len(whole["items"]) == 13
    second = await reads("ReadTimeline", SHOP, id=f"{schedule_id}.2")
    ids = {step["entry"]["callback_id"] for step in second["items"]}
    assert ids == {None, f"{schedule_id}.2"}
    assert [step["kind"] for step in second["items"]] == [
        *("scheduled", "dispatched", "attempt", "retry", "dispatched", "attempt", "notified"),
    ]
    attempts = await reads("ReadAttempts", SHOP, id=f"{schedule_id}.2")
    assert len(attempts["items"]) == 2


async def test_n6_only_operators_read_the_timeline_of_an_e_mail(reads: Reads) -> None:
    sent = MessageSent(
        fact_id="m-1/1",
        at=NOW,
        message_id="m-1",
        channel="email",
        posting_id=None,
        mailing_id=None,
        recipient_id="r-1",
        attempt=1,
        duration=0.1,
    )
    await reads.add([sent])
    timeline = await reads("ReadTimeline", OPERATOR, id="m-1")
    assert [step["kind"] for step in timeline["items"]] == ["sent"]
    for context in (SHOP, ANONYMOUS):
        assert (await reads("ReadTimeline", context, id="m-1")).code is FailureCode.NOT_FOUND


async def test_n6_the_timeline_shows_gaps_and_kept_requests(reads: Reads) -> None:
    sealed = b64encode(CIPHER.encrypt(b"{}")).decode()
    await reads.add([failed(callback_id="kept", request=sealed), failed(callback_id="lost")])
    await reads.database.execute(
        "INSERT INTO journal.gaps (stream, first_offset, last_offset, messages, reason)"
        " VALUES ('journal.facts', 5, 9, 5, 'backlog_exceeded')"
    )
    timeline = await reads("ReadTimeline", SHOP, id="kept")
    assert [step["kind"] for step in timeline["items"]] == ["attempt", "tier"]
    assert timeline["kept"]
    assert [(gap["first_offset"], gap["messages"]) for gap in timeline["gaps"]] == [(5, 5)]
    assert not (await reads("ReadTimeline", SHOP, id="lost"))["kept"]


def _matches(fact: Any, search: dict[str, Any], client_id: str | None) -> bool:
    """Say independently of SQL whether an attempt matches a search."""
    outcome = fact.type.removeprefix("callback.").replace("attempt_failed", "failed")
    reason = str(getattr(fact, "reason", None) or getattr(fact, "error", ""))
    status = search.get("status")
    return (
        (client_id is None or (fact.client_id or "") == client_id)
        and search.get("target") in (None, fact.target)
        and (
            status in (None, outcome, str(fact.status))
            or (status == "failed" and outcome != "delivered")
        )
        and search.get("reason", "") in reason
        and search.get("trace_id") in (None, fact.trace_id)
        and fact.at >= datetime.fromisoformat(search.get("since", "2000-01-01T00:00:00Z"))
        and fact.at < datetime.fromisoformat(search.get("until", "2100-01-01T00:00:00Z"))
    )


async def test_n6_every_combination_of_filters_finds_the_same_as_a_scan(
    reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small windows and pages make each search continue many times."""
    monkeypatch.setattr(attempts_store, "WINDOW", 7)
    random = Random(6)  # the same attempts each time
    targets, traces = (TARGET, "http://127.0.0.1:8000"), ("a" * 32, "b" * 32, None)
    makers: tuple[Any, ...] = (delivered, failed, dead, dispatch_failed)
    facts = [
        random.choice(makers)(
            client_id=random.choice(("shop", "other", None)),
            target=random.choice(targets),
            trace_id=random.choice(traces),
            # Many at the same time, over two days.
            at=NOW - timedelta(minutes=random.randrange(0, 2880, 60)),
            attempt=number,
        )
        for number in range(200)
    ]
    await reads.add(facts)
    await reads.database.execute("UPDATE journal.entries SET outcome = outcome")  # another order
    choices: dict[str, tuple[str | None, ...]] = {
        "target": (None, targets[1]),
        "status": (None, "failed", "delivered", "dead", "503"),
        "reason": (None, "status 4"),
        "trace_id": (None, traces[0]),
        "since": (None, (NOW - timedelta(hours=30)).isoformat()),
        "until": (None, (NOW - timedelta(hours=3)).isoformat()),
    }
    for values in product(*choices.values()):
        search = {k: v for k, v in zip(choices, values, strict=True) if v is not None}
        for context, client_id in ((OPERATOR, None), (SHOP, "shop"), (ANONYMOUS, "")):
            found: list[int] = []
            places: list[str] = []
            cursor = None
            while True:
                page = await reads("ListAttempts", context, **search, cursor=cursor, limit=9)
                found += [item["attempt"] for item in page["items"]]
                places += [item["at"] for item in page["items"]]
                cursor = page["next_cursor"]
                if cursor is None:
                    break
            expected = [f.attempt for f in facts if _matches(f, search, client_id)]
            assert sorted(found) == sorted(expected), (search, client_id)
            assert places == sorted(places, reverse=True)


async def test_n6_a_search_for_nothing_ends_early_and_continues_at_its_cursor(
    reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_store, "WINDOW", 10)
    monkeypatch.setattr(attempts_store, "SEARCH_TIME", 0.0)
    await reads.add([delivered() for _ in range(45)])
    sizes: list[int] = []
    cursor = None
    while cursor is not None or not sizes:
        page = await reads("ListAttempts", SHOP, target=TARGET, status="404", cursor=cursor)
        sizes.append(len(page["items"]))
        cursor = page["next_cursor"]
    assert sizes == [0]  # nothing failed, so the index of failures is empty
    sizes.clear()
    while cursor is not None or not sizes:
        page = await reads("ListAttempts", SHOP, target=TARGET, status="204", cursor=cursor)
        sizes.append(len(page["items"]))
        cursor = page["next_cursor"]
    assert sizes == [0] * 5
    async with reading(reads.database) as connection:
        assert await connection.fetchval("SHOW statement_timeout") == "1s"


async def test_n6_attempts_are_found_by_group_and_event_key(reads: Reads) -> None:
    mine, others = uuid4(), uuid4()
    await reads.add([*story(mine, "shop"), *story(others, "other"), delivered()])
    for search in ({"group_key": "user-7"}, {"event_key": f"reminder-{mine}"}):
        page = await reads("ListAttempts", SHOP, **search, limit=1)
        assert [item["schedule_id"] for item in page["items"]] == [str(mine)]
        page = await reads("ListAttempts", SHOP, **search, limit=1, cursor=page["next_cursor"])
        assert [item["outcome"] for item in page["items"]] == ["dispatch_failed"]
        assert page["next_cursor"] is None
    search = {"group_key": "user-7", "event_key": f"reminder-{others}", "status": "delivered"}
    assert len((await reads("ListAttempts", OPERATOR, **search))["items"]) == 1
    assert (await reads("ListAttempts", OPERATOR, **search, target="http://x"))["items"] == []
    assert (await reads("ListAttempts", OPERATOR, group_key="none"))["items"] == []


async def test_n6_a_target_is_found_by_any_of_its_urls(reads: Reads) -> None:
    await reads.add([delivered()])
    for url in ("https://example.com", "https://EXAMPLE.com:443/path?token=1", TARGET):
        assert len((await reads("ListAttempts", SHOP, target=url))["items"]) == 1, url
        detail = await reads("ReadTarget", OPERATOR, target=url)
        assert detail["health"]["delivered"] == 1, url


async def test_n6_a_wrong_request_names_the_field(reads: Reads) -> None:
    wrong: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("ListAttempts", {"status": "lost"}, "status"),
        ("ListAttempts", {"since": "yesterday"}, "since"),
        ("ListAttempts", {"since": "2026-11-20T12:00:00"}, "since"),
        ("ListAttempts", {"since": "0.5"}, "since"),
        (
            "ListAttempts",
            {"since": "2026-11-20T12:00:00Z", "until": "2026-11-20T11:00:00Z"},
            "until",
        ),
        ("ListAttempts", {"reason": "\0"}, "reason"),
        ("ListAttempts", {"target": ""}, "target"),
        ("ListAttempts", {"cursor": "AAAA"}, "cursor"),
        ("ListAttempts", {"limit": 0}, "limit"),
        ("ReadAttempts", {"id": "x", "cursor": "💥"}, "cursor"),
        ("ReadTimeline", {"id": "\0"}, "id"),
        ("ReadTimeline", {"id": "x", "cursor": "?"}, "cursor"),
        ("ListTargets", {"minutes": 100_000}, "minutes"),
        ("ListTargets", {"cursor": "x"}, "cursor"),
        ("ListAudit", {"cursor": "x"}, "cursor"),
        ("Tail", {"after": -1}, "after"),
    )
    for operation, request, field in wrong:
        refused = await reads(operation, OPERATOR, **request)
        assert isinstance(refused, Failure), (operation, request)
        assert [error.field for error in refused.errors] == [field], (operation, request)


async def test_n6_a_page_with_long_texts_ends_early(
    reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_store, "MAX_PAGE_CHARACTERS", 2500)
    await reads.add([dead(reason="x" * 1000, attempt=number) for number in range(1, 6)])
    found: list[int] = []
    sizes: list[int] = []
    cursor = None
    while cursor is not None or not sizes:
        page = await reads("ListAttempts", SHOP, cursor=cursor)
        found += [item["attempt"] for item in page["items"]]
        sizes.append(len(page["items"]))
        cursor = page["next_cursor"]
    assert sizes == [2, 2, 1]
    assert sorted(found) == [1, 2, 3, 4, 5]


async def test_n6_the_tail_follows_new_entries_in_the_order_of_the_stream(
    reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reads.add([delivered()])
    begin = await reads("Tail", OPERATOR)
    assert begin["items"] == []
    later = [delivered(attempt=1, at=NOW), failed(attempt=2, at=NOW - timedelta(days=1))]
    await reads.add([*later, delivered(attempt=3, client_id="other")])
    page = await reads("Tail", OPERATOR, after=begin["seq"], limit=2)
    assert [item["attempt"] for item in page["items"]] == [1, 2]
    page = await reads("Tail", OPERATOR, after=page["seq"])
    assert [item["attempt"] for item in page["items"]] == [3]
    empty = await reads("Tail", OPERATOR, after=page["seq"])
    assert empty == {"items": [], "seq": page["seq"]}
    for filters, attempts in (
        ({"outcome": "failed"}, [2]),
        ({"client_id": "other"}, [3]),
        ({"target": "https://example.com"}, [1, 2, 3]),
        ({"kinds": ["dead", "scheduled"]}, []),
    ):
        found = await reads("Tail", OPERATOR, after=begin["seq"], **filters)
        assert [item["attempt"] for item in found["items"]] == attempts, filters
        assert found["seq"] == page["seq"]
    monkeypatch.setattr(attempts_store, "TAIL_WINDOW", 1)
    found = await reads("Tail", OPERATOR, after=begin["seq"], outcome="dead", limit=1)
    assert found == {"items": [], "seq": begin["seq"] + 1}


async def test_n6_clients_are_listed_once_and_by_prefix(reads: Reads) -> None:
    clients = ["shop-10", "shop-2", None, "billing", "shop-2", "ship"]
    for days in (0, 1):
        at = NOW - timedelta(days=days)
        await reads.add([delivered(client_id=client, at=at) for client in clients])
    found = await reads("ListClientIds", OPERATOR)
    assert found["items"] == ["billing", "ship", "shop-10", "shop-2"]
    found = await reads("ListClientIds", OPERATOR, prefix="shop")
    assert found["items"] == ["shop-10", "shop-2"]
    found = await reads("ListClientIds", OPERATOR, limit=1)
    assert found["items"] == ["billing"]
    assert (await reads("ListClientIds", OPERATOR, prefix="z"))["items"] == []


async def test_n6_actions_are_audited_once_and_found(reads: Reads) -> None:
    ada = OPERATOR._replace(actor="Ada", message_id="m-1")
    for _ in range(2):  # a request that is delivered again
        await reads("RecordAudit", ada, action="pause_target", object=TARGET, client_id="shop")
    await reads("RecordAudit", OPERATOR, action="redrive", detail={"queue": "callbacks\0"})
    page = await reads("ListAudit", OPERATOR, limit=1)
    [item] = page["items"]
    assert (item["actor"], item["action"], item["result"]) == ("Omar", "redrive", "done")
    page = await reads("ListAudit", OPERATOR, limit=1, cursor=page["next_cursor"])
    [item] = page["items"]
    assert (item["actor"], item["object"], item["client_id"]) == ("Ada", TARGET, "shop")
    assert page["next_cursor"] is None
    for search in (
        {"actor": "Ada"},
        {"action": "pause_target"},
        {"client_id": "shop"},
    ):
        assert len((await reads("ListAudit", OPERATOR, **search))["items"]) == 1, search
    tomorrow = (NOW + timedelta(days=1)).isoformat()
    assert (await reads("ListAudit", OPERATOR, since=tomorrow))["items"] == []
    assert len((await reads("ListAudit", OPERATOR, until=tomorrow))["items"]) == 2
