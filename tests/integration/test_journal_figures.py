"""N8: the health of targets, from the journal's figures."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.journal.targets.recording import record_lanes
from shared.contracts.journal_facts import LaneFull
from tests.fakes.journal import TARGET, delivered
from tests.fakes.journal_reads import OPERATOR, Reads, journal_reads
from tests.integration.test_journal_reads import failed

BAD, PAUSED, BROKEN = (f"https://{name}.example:443" for name in ("bad", "paused", "broken"))


@pytest.fixture
async def reads(database_url: str) -> AsyncIterator[Reads]:
    async with journal_reads(database_url) as handlers:
        yield handlers


async def test_n8_targets_have_rates_errors_and_quantiles_and_the_worst_is_first(
    reads: Reads,
) -> None:
    now = datetime.now(UTC)
    old = now - timedelta(hours=2)
    await reads.add([delivered(duration=0.02) for _ in range(99)])
    await reads.add([delivered(duration=4.0), delivered(duration=9.0, at=old)])
    await reads.add([failed(target=BAD, duration=0.1), failed(target=BAD, client_id="other")])
    await reads.database.execute("INSERT INTO journal.paused_targets (target) VALUES ($1)", PAUSED)
    await reads.database.execute(
        "INSERT INTO journal.breakers (target, client_id, process, opened_at, until) VALUES"
        " ($1, 'shop', 'p', now(), now() + interval '1 minute'),"
        " ($2, '', 'q', now() - interval '1 hour', now() - interval '1 minute')",
        BROKEN,
        TARGET,
    )
    page = await reads("ListTargets", OPERATOR)
    found = {item["target"]: item for item in page["items"]}
    assert list(found) == [BAD, BROKEN, TARGET, PAUSED]
    assert (found[TARGET]["delivered"], found[TARGET]["failed"]) == (100, 0)
    assert 0.015 <= found[TARGET]["p50"] <= 0.02
    assert found[TARGET]["p99"] <= 0.02
    assert (found[BAD]["delivered"], found[BAD]["failed"]) == (0, 2)
    flags = {name: (item["paused"], item["breaker_open"]) for name, item in found.items()}
    assert flags == {
        TARGET: (False, False),
        BAD: (False, False),
        PAUSED: (True, False),
        BROKEN: (False, True),
    }
    assert found[PAUSED]["p50"] is None
    page = await reads("ListTargets", OPERATOR, minutes=180, client_id="shop")
    counts = {item["target"]: (item["delivered"], item["failed"]) for item in page["items"]}
    assert counts == {TARGET: (101, 0), BAD: (0, 1), PAUSED: (0, 0), BROKEN: (0, 0)}


async def test_n8_a_full_lane_is_shown_for_a_minute_after_its_last_report(reads: Reads) -> None:
    now = datetime.now(UTC)

    def full(ago: float, target: str = TARGET, **fields: Any) -> LaneFull:
        given: dict[str, Any] = {"client_id": "shop", "process": "p", "reason": "lane full"}
        given |= {"in_flight": 4, "limit": 4, "at": now - timedelta(seconds=ago)}
        return LaneFull(fact_id="f", target=target, **given | fields)

    for facts in (
        [full(40), full(10, in_flight=9), full(20, client_id="bank", reason="lane stalled")],
        [full(70, BAD), full(7200, BROKEN)],
        [],
    ):
        async with reads.database.transaction() as connection:
            await record_lanes(connection, facts)

    page = await reads("ListTargets", OPERATOR)
    assert [(item["target"], item["lane_full"]) for item in page["items"]] == [(TARGET, True)]
    detail = await reads("ReadTarget", OPERATOR, target=TARGET)
    assert detail["health"]["lane_full"]
    lanes = [
        (lane["client_id"], lane["reason"], lane["in_flight"]) for lane in detail["full_lanes"]
    ]
    assert lanes == [("bank", "lane stalled", 4), ("shop", "lane full", 9)]
    detail = await reads("ReadTarget", OPERATOR, target=TARGET, client_id="other")
    assert (detail["health"]["lane_full"], detail["full_lanes"]) == (False, [])
    kept = await reads.database.fetch("SELECT target FROM journal.full_lanes ORDER BY target")
    assert {row["target"] for row in kept} == {BAD, TARGET}


async def test_n8_targets_are_paged_and_each_is_on_one_page(reads: Reads) -> None:
    names = [f"https://{number:03}.example:443" for number in range(25)]
    for number, name in enumerate(names):
        await reads.add(
            [failed(target=name) for _ in range(number % 3)] or [delivered(target=name)]
        )
    seen: list[tuple[int, str]] = []
    cursor, pages = None, 0
    while cursor is not None or not pages:
        page = await reads("ListTargets", OPERATOR, limit=4, cursor=cursor)
        seen += [(-item["failed"], item["target"]) for item in page["items"]]
        cursor, pages = page["next_cursor"], pages + 1
    assert pages == 7
    assert seen == sorted(seen)
    assert sorted(target for _, target in seen) == names


async def test_n8_a_target_is_read_by_minute_up_to_a_given_time(reads: Reads) -> None:
    minute = datetime.now(UTC).replace(second=0, microsecond=0)
    for ago, count in ((3, 2), (1, 1)):
        at = minute - timedelta(minutes=ago) + timedelta(seconds=7)
        await reads.add([delivered(at=at) for _ in range(count)])
        await reads.add([failed(at=at, client_id="other"), failed(at=at, target=BAD)])
    detail = await reads("ReadTarget", OPERATOR, target=TARGET)
    counts = [(item["at"], item["delivered"], item["failed"]) for item in detail["minutes"]]
    stamps = [
        (minute - timedelta(minutes=ago)).isoformat().replace("+00:00", "Z") for ago in (3, 1)
    ]
    assert counts == [(stamps[0], 2, 1), (stamps[1], 1, 1)]
    assert (detail["health"]["delivered"], detail["health"]["failed"]) == (3, 2)
    until = (minute - timedelta(minutes=2)).isoformat()
    detail = await reads("ReadTarget", OPERATOR, target=TARGET, until=until, client_id="shop")
    assert [item["delivered"] for item in detail["minutes"]] == [2]
    assert (detail["health"]["delivered"], detail["health"]["failed"]) == (2, 0)
    nothing = await reads("ReadTarget", OPERATOR, target="https://unknown.example")
    assert nothing["minutes"] == nothing["breakers"] == []
    assert nothing["health"]["target"] == "https://unknown.example:443"
