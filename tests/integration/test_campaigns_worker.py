"""M2, M4 to M6: mailings start, end and stop on time, and none delays the others."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

from services.mailings.campaigns.records import StoredMailing
from shared.contracts.mailing_requests import MailingDeleted
from shared.contracts.mailings import MailingStatus
from shared.contracts.requests import Failure
from tests.fakes.campaigns import CampaignProcess, add_messages, in_status, soon
from tests.fakes.waiting import until


async def test_m4_a_mailing_inside_its_window_starts_at_once(process: CampaignProcess) -> None:
    created = await process.create()
    assert created.status == "running"
    assert created.started_at == created.start_at
    [posting] = await process.postings(created.id)
    assert posting["is_due"]
    assert posting["expires_at"] == created.end_at
    assert posting["timezone"] is None
    assert process.starts == 1


async def test_m4_a_later_mailing_is_requested_from_the_scheduler_and_starts_when_it_is_due(
    process: CampaignProcess,
) -> None:
    created = await process.create(start_at=soon(600))
    assert created.status == "scheduled"
    assert await process.worker.run_once(10) == 1
    assert process.partners.starts == [(created.id, created.start_at)]
    assert await process.worker.run_once(10) == 0

    await process.worker.start(created.id)  # a notification that comes too early
    assert (await process.get(created.id)).status == "scheduled"
    await process.move(created.id, start_at=datetime.now(UTC))
    await process.worker.start(created.id)
    await process.worker.start(created.id)  # a repeated notification
    assert (await process.get(created.id)).status == "running"
    assert len(await process.postings(created.id)) == 1
    assert process.starts == 1


async def test_m4_a_start_is_requested_again_until_the_scheduler_has_confirmed_it(
    process: CampaignProcess,
) -> None:
    process.partners.unavailable = True
    created = await process.create(start_at=soon(600))
    assert await process.worker.run_once(10) == 1
    assert await process.worker.run_once(10) == 1
    process.partners.unavailable = False
    await process.worker.run_once(10)
    assert process.partners.starts == [(created.id, created.start_at)]
    assert await process.worker.run_once(10) == 0


async def test_m4_a_mailing_starts_without_the_notification_when_it_is_overdue(
    process: CampaignProcess,
) -> None:
    created = await process.create(start_at=soon(600))
    await process.worker.run_once(10)
    process.partners.unavailable = True
    await process.move(created.id, start_at=datetime.now(UTC) - timedelta(seconds=1))
    await process.worker.run_once(10)
    assert (await process.get(created.id)).status == "scheduled"
    await process.move(created.id, start_at=datetime.now(UTC) - timedelta(seconds=5))
    await process.worker.run_once(10)
    assert (await process.get(created.id)).status == "running"


async def test_m4_a_new_start_time_is_requested_too(process: CampaignProcess) -> None:
    created = await process.create(start_at=soon(600))
    await process.worker.run_once(10)
    changed = await process.request(
        "ChangeMailing", id=str(created.id), changes={"start_at": soon(1200)}
    )
    assert changed.status == "scheduled"
    await process.worker.run_once(10)
    assert process.partners.starts[-1] == (created.id, changed.start_at)
    now = await process.request("ChangeMailing", id=str(created.id), changes={"start_at": soon(-1)})
    assert now.status == "running"


async def test_m5_each_time_zone_with_matching_clients_starts_at_its_opening(
    process: CampaignProcess,
) -> None:
    await process.add_clients("Europe/Moscow", "Asia/Tokyo", "Asia/Omsk", "Asia/Tokyo", tag="a")
    await process.request(
        "CreateClient", client={"phone": "79260000000", "timezone": "Asia/Baku", "tag": "b"}
    )
    now = datetime.now(UTC)
    # The next minute in Moscow opens a window of an hour; the hours in Tokyo are over by then.
    opens = (now + timedelta(hours=3, minutes=1)).strftime("%H:%M")
    closes = (now + timedelta(hours=4)).strftime("%H:%M")
    created = await process.create(
        local_hours={"from": opens, "to": closes},
        filter={"tags": ["a"]},
        end_at=soon(3 * 86_400),
    )
    assert created.status == "running"
    postings = await process.postings(created.id)
    assert [posting["timezone"] for posting in postings] == [
        "Asia/Omsk",
        "Asia/Tokyo",
        "Europe/Moscow",
    ]
    waits = {each["timezone"]: each["due_at"] - each["now"] for each in postings}
    assert timedelta(0) < waits["Europe/Moscow"] <= timedelta(minutes=1)
    assert timedelta(hours=20) < waits["Asia/Omsk"] < timedelta(hours=22)
    assert timedelta(hours=17) < waits["Asia/Tokyo"] < timedelta(hours=19)


async def test_m2_after_the_end_time_a_mailing_is_finished_and_the_rest_expires(
    process: CampaignProcess,
) -> None:
    for status in (MailingStatus.SCHEDULED, MailingStatus.RUNNING, MailingStatus.PAUSED):
        created = await in_status(process, status)
        await process.move(
            created.id,
            start_at=datetime.now(UTC) - timedelta(seconds=2),
            end_at=datetime.now(UTC) - timedelta(seconds=1),
        )
        await add_messages(process, created, 3)
        await process.worker.attend(created.id)
        finished = await process.get(created.id)
        assert finished.status == "finished"
        assert finished.ended_at is not None
        messages = await process.request("ListMailingMessages", id=str(created.id))
        expected = 0 if status is MailingStatus.SCHEDULED else 3
        assert [message.status for message in messages.items] == ["expired"] * expected


async def test_m2_unsent_messages_of_a_cancelled_mailing_are_cancelled_after_the_stop(
    process: CampaignProcess,
) -> None:
    created = await process.create()
    await add_messages(process, created, 2500)
    process.partners.unavailable = True
    await process.request("CancelMailing", id=str(created.id))
    await process.worker.run_once(10)
    page = await process.request("ListMailingMessages", id=str(created.id), status="created")
    assert len(page.items) == 100
    process.partners.unavailable = False
    await process.worker.run_once(10)
    page = await process.request("ListMailingMessages", id=str(created.id), status="created")
    assert page.items == []
    [posting] = await process.postings(created.id)
    assert (posting["created"], posting["cancelled"]) == (0, 2500)
    assert posting["ended"] == "cancelled"
    assert await process.worker.run_once(10) == 0


async def test_m2_a_mailing_without_matching_clients_finishes(process: CampaignProcess) -> None:
    created = await process.create(local_hours={"from": "09:00", "to": "21:00"})
    await process.worker.run_once(10)
    assert (await process.get(created.id)).status == "finished"


async def test_m2_a_stop_is_not_forgotten_with_the_deletion_of_its_mailing(
    process: CampaignProcess,
) -> None:
    created = await process.create()
    process.partners.unavailable = True
    await process.request("CancelMailing", id=str(created.id))
    deleted = await process.request("DeleteMailing", id=str(created.id))
    assert isinstance(deleted, Failure)
    assert deleted.code == "unknown"
    assert (await process.get(created.id)).status == "cancelled"
    process.partners.unavailable = False
    deleted = await process.request("DeleteMailing", id=str(created.id))
    assert deleted == MailingDeleted(id=created.id)
    assert [status for _, _, status in process.partners.stops] == ["cancelled"]


async def test_m6_a_deletion_during_a_settlement_leaves_no_counts(
    process: CampaignProcess,
) -> None:
    created = await process.create()
    await add_messages(process, created, 3)
    await process.request("CancelMailing", id=str(created.id))
    [posting] = await process.postings(created.id)
    async with process.database.transaction() as settling:
        await settling.execute(
            "SELECT FROM mailings.postings WHERE id = $1 FOR UPDATE", posting["id"]
        )
        await settling.execute(
            "UPDATE mailings.messages SET status = 'cancelled' WHERE posting_id = $1", posting["id"]
        )
        deleting = asyncio.create_task(process.request("DeleteMailing", id=str(created.id)))
        await until(
            lambda: settling.fetchval(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND transactionid IS NOT NULL"
            )
        )
    assert await deleting == MailingDeleted(id=created.id)
    assert not await process.database.fetch("SELECT FROM mailings.statistics")


async def test_m2_a_mailing_with_a_bug_delays_no_other_mailing(process: CampaignProcess) -> None:
    broken, other = [await process.create(start_at=soon(600)) for _ in range(2)]

    async def request_start(mailing: StoredMailing) -> None:
        if mailing.id == broken.id:
            raise ValueError("a bug")
        process.partners.starts.append((mailing.id, mailing.start_at))

    process.partners.request_start = request_start  # type: ignore[method-assign]
    assert await process.worker.run_once(10) == 2
    assert process.partners.starts == [(other.id, other.start_at)]


async def test_m2_services_that_do_not_respond_delay_no_other_mailing(
    process: CampaignProcess,
) -> None:
    hanging = [await process.create(start_at=soon(600)) for _ in range(30)]
    requested: set[UUID] = set()
    all_requested = asyncio.Event()

    async def request_start(mailing: StoredMailing) -> None:
        requested.add(mailing.id)
        if len(requested) == len(hanging):
            all_requested.set()
        await all_requested.wait()  # a mailing that waits for its turn would never be requested

    process.partners.request_start = request_start  # type: ignore[method-assign]
    async with asyncio.timeout(20):
        await process.worker.run_once(100)


async def test_m2_mailings_that_cannot_be_attended_to_leave_turns_for_others(
    process: CampaignProcess,
) -> None:
    created = {(await process.create(start_at=soon(600))).id for _ in range(4)}
    process.partners.unavailable = True
    attended: set[UUID] = set()
    for _ in range(60):
        attended.update(await process.campaigns.pending(5, 2))
    assert attended == created
