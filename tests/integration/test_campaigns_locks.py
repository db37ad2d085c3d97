"""M2: slow readings of the directory delay no stop, and no mailing is locked meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.fakes.campaigns import CampaignProcess
from tests.fakes.waiting import until

HOURS = {"from": "00:00", "to": "23:59"}


@asynccontextmanager
async def locked_directory(process: CampaignProcess) -> AsyncIterator[None]:
    """Let every reading of the directory wait."""
    async with process.database.transaction() as connection:
        await connection.execute("LOCK TABLE mailings.clients")
        yield


async def waits_for_directory(process: CampaignProcess) -> bool:
    rows = await process.database.fetch(
        "SELECT FROM pg_locks WHERE NOT granted AND relation = 'mailings.clients'::regclass"
    )
    return bool(rows)


async def test_m2_a_stop_does_not_wait_for_counts_of_audiences(process: CampaignProcess) -> None:
    created = await process.create()
    async with locked_directory(process):
        counts = [asyncio.create_task(process.request("CountAudience")) for _ in range(5)]
        starts = [
            asyncio.create_task(process.create(local_hours=HOURS, text=f"Text {number}"))
            for number in range(5)
        ]
        await until(lambda: waits_for_directory(process))
        paused = await process.request("PauseMailing", id=str(created.id))
        assert paused.status == "paused"
        assert not any(task.done() for task in (*counts, *starts))
    assert {each.clients for each in await asyncio.gather(*counts)} == {0}
    assert {each.status for each in await asyncio.gather(*starts)} == {"running"}


async def test_m2_m5_a_mailing_is_not_locked_while_the_time_zones_of_its_clients_are_read(
    process: CampaignProcess,
) -> None:
    await process.add_clients("Europe/Moscow", tag="a")
    await process.request(
        "CreateClient", client={"phone": "79260000000", "timezone": "Asia/Baku", "tag": "b"}
    )
    draft = await process.create(local_hours=HOURS, filter={"tags": ["a"]}, draft=True)
    async with locked_directory(process):
        starting = asyncio.create_task(process.request("StartMailing", id=str(draft.id)))
        await until(lambda: waits_for_directory(process))
        changed = await process.request(
            "ChangeMailing", id=str(draft.id), changes={"filter": {"tags": ["b"]}}
        )
        assert changed.status == "draft"
        assert not starting.done()
    assert (await starting).status == "running"
    # The time zones are read again for the new filter.
    assert [each["timezone"] for each in await process.postings(draft.id)] == ["Asia/Baku"]
