"""The scheduler on a real database, step by step: requirement by requirement."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.scheduler.handlers import Handler
from shared.amqp.codec import Properties
from shared.amqp.message import Message
from shared.contracts.schedules import ScheduleCallback
from shared.errors import PermanentError
from shared.security.jwks import shared_key
from shared.security.tickets import TicketIssuer, TicketVerifier
from tests.fakes.scheduling import (
    ALLOWED_EXCHANGE,
    TICKET_KEY,
    URL,
    Scheduler,
    attempt_failed,
    delivered,
    dispatch_failed,
    finished,
    schedulers,
)

AMQP = {"transport": "amqp", "exchange": ALLOWED_EXCHANGE, "routing_key": "due"}


@pytest.fixture
async def scheduler(database_url: str) -> AsyncIterator[Scheduler]:
    async with schedulers(database_url) as (one,):
        yield one


async def test_s1_a_callback_is_dispatched_at_its_due_time_and_not_before(
    scheduler: Scheduler,
) -> None:
    callback = await scheduler.create(context={"a": 1}, group_key="g", event_key="e")
    assert await scheduler.dispatch() == []
    assert (await scheduler.status(callback))["status"] == "scheduled"
    await scheduler.make_due(callback)

    (body,) = await scheduler.dispatch()

    assert body["target_url"] == URL
    assert body["payload"]["id"] == body["id"] == str(callback)
    assert body["payload"]["context"] == {"a": 1}
    assert (await scheduler.status(callback))["status"] == "dispatched"
    await scheduler.settle(delivered(callback))
    status = await scheduler.status(callback)
    assert (status["status"], status["attempts"]) == ("notified", 1)
    assert status["context"] == {"a": 1}
    assert await scheduler.dispatch() == []


async def test_s1_a_callback_that_is_already_due_is_dispatched_on_creation(
    scheduler: Scheduler,
) -> None:
    for due in ({"delay": 0}, {"run_at": "2026-11-01T00:00:00Z"}):
        await scheduler.create(**due)
    await scheduler.dispatcher.drain(10)
    assert len(scheduler.broker.sent) == 2
    assert await scheduler.dispatch() == []


@pytest.mark.parametrize(
    ("run_at", "reason"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), "30 days ago"),
        (datetime(2099, 1, 1, tzinfo=UTC), "ten years ahead"),
    ],
)
async def test_s1_due_times_out_of_bounds_are_rejected_with_the_reason(
    scheduler: Scheduler, run_at: datetime, reason: str
) -> None:
    given = {"url": URL, "run_at": run_at.isoformat()}
    rejected = await scheduler.request("CreateCallback", callback=given)
    assert rejected["code"] == "invalid"
    assert rejected["errors"][0]["field"] == "run_at"
    assert reason in rejected["errors"][0]["message"]
    callback = await scheduler.create()
    rejected = await scheduler.request(
        "RescheduleCallback", id=str(callback), run_at=run_at.isoformat()
    )
    assert rejected["code"] == "invalid"


@pytest.mark.parametrize("status", ["scheduled", "notified", "failed", "cancelled"])
async def test_s3_a_key_stays_used_after_the_callback_has_finished(
    scheduler: Scheduler, status: str
) -> None:
    keys = {"group_key": "g", "event_key": "e"}
    await (
        scheduler.create(**keys) if status == "scheduled" else finished(scheduler, status, **keys)
    )
    body = {"url": URL, "delay": 9}
    rejected = await scheduler.request("CreateCallback", callback=body | keys)
    assert (rejected["code"], rejected["errors"][0]["field"]) == ("conflict", "event_key")
    # Another group, no group, and another client have keys of their own.
    await scheduler.create(group_key="h", event_key="e")
    await scheduler.create(event_key="e")
    await scheduler.create(client="shop", **keys)


async def test_finding_a12_concurrent_batches_with_the_same_keys_do_not_deadlock(
    database_url: str,
) -> None:
    async with schedulers(database_url, 2) as (one, two):
        for round_ in range(5):
            callbacks = [
                {"url": URL, "delay": 60, "group_key": f"{round_}", "event_key": f"{n}"}
                for n in range(500)
            ]
            responses = await asyncio.gather(
                one.request("CreateCallbacks", callbacks=callbacks),
                two.request("CreateCallbacks", callbacks=callbacks[::-1]),
            )
            results = [
                item.get("error", {}).get("code")
                for response in responses
                for item in response["items"]
            ]
            assert sorted(map(str, results)) == ["None"] * 500 + ["conflict"] * 500


async def test_s3_the_first_of_two_equal_keys_in_a_batch_is_created(scheduler: Scheduler) -> None:
    twice: list[Any] = [{"url": URL, "delay": 60, "event_key": "e"}] * 2
    items = (await scheduler.request("CreateCallbacks", callbacks=twice))["items"]
    assert ["error" in item for item in items] == [False, True]
    assert items[1]["error"]["code"] == "conflict"


async def test_a_batch_has_a_result_for_each_callback(scheduler: Scheduler) -> None:
    given = [{"url": URL}, {"url": "ftp://x", "delay": -1}, 7, {"url": URL, "delay": 1}]
    items = (await scheduler.request("CreateCallbacks", callbacks=given))["items"]
    assert ["error" in item for item in items] == [False, True, True, False]
    assert {each["field"] for each in items[1]["error"]["errors"]} == {"url", "delay"}


async def test_an_idempotency_key_creates_one_callback(scheduler: Scheduler) -> None:
    given: dict[str, Any] = {"callback": {"url": URL, "delay": 60}, "idempotency_key": "k"}
    first = await scheduler.request("CreateCallback", **given)
    assert (await scheduler.request("CreateCallback", **given))["id"] == first["id"]
    other = await scheduler.request("CreateCallback", callback={"url": URL}, idempotency_key="k")
    assert other["code"] == "conflict"
    assert (await scheduler.request("CreateCallback", "shop", **given))["id"] != first["id"]


async def test_s5_quick_retries_then_main_retries_until_stop_after_delay(
    scheduler: Scheduler,
) -> None:
    params = {
        "stop_after_delay": 1000,
        "strategy": "exponential",
        "base_delay": 100,
        "delay_growth_rate": 3,
    }
    callback = await scheduler.create(retry_params=params)
    await scheduler.make_due(callback)
    await scheduler.dispatch()
    delays = []
    for dispatch in (1, 2, 3):
        await scheduler.settle(attempt_failed(callback, dispatch))
        status = await scheduler.status(callback)
        assert status["status"] == "retrying"
        assert status["next_at"] is not None
        await scheduler.settle(dispatch_failed(callback, dispatch, attempt=2))
        status = await scheduler.status(callback)
        if status["status"] == "failed":
            break
        delay = datetime.fromisoformat(status["next_at"]) - datetime.now(UTC)
        delays.append(round(delay.total_seconds(), -2))
        await scheduler.age(callback, delay)
        await scheduler.dispatch()
    assert delays == [100, 300]  # the third retry would come after 1,300 s
    assert (status["status"], status["attempts"]) == ("failed", 6)
    assert "500" in status["last_error"]
    assert [fact["type"] for fact in scheduler.broker.facts] == [
        "schedule.retrying",
        "schedule.retrying",
        "schedule.failed",
    ]


async def test_s6_amqp_notifications_go_only_to_allowed_exchanges(scheduler: Scheduler) -> None:
    callback = await scheduler.create(notify_scheme=AMQP, context=[1])
    await scheduler.make_due(callback)
    (envelope,) = await scheduler.dispatch()
    assert (envelope["id"], envelope["context"]) == (str(callback), [1])
    assert scheduler.broker.sent[-1].exchange == ALLOWED_EXCHANGE
    assert scheduler.broker.sent[-1].mandatory
    assert (await scheduler.status(callback))["status"] == "notified"
    rejected = await scheduler.request(
        "CreateCallback", callback={"url": URL, "notify_scheme": AMQP | {"exchange": "outcomes"}}
    )
    assert rejected["errors"][0]["field"] == "notify_scheme.exchange"


async def test_s6_an_amqp_notification_that_reaches_no_queue_gets_a_main_retry(
    scheduler: Scheduler,
) -> None:
    callback = await scheduler.create(notify_scheme=AMQP)
    scheduler.broker.exchanges.discard(ALLOWED_EXCHANGE)
    await scheduler.make_due(callback)
    await scheduler.dispatch()
    status = await scheduler.status(callback)
    assert (status["status"], status["attempts"]) == ("retrying", 1)
    assert "NO_ROUTE" in status["last_error"]


async def waiting_retrying_in_flight(scheduler: Scheduler) -> tuple[UUID, UUID, UUID]:
    """Create a callback that is not due, one between two retries, and one in flight."""
    waiting, retrying, in_flight = [await scheduler.create() for _ in range(3)]
    await scheduler.make_due(retrying, in_flight)
    await scheduler.dispatch()
    await scheduler.settle(dispatch_failed(retrying))
    return waiting, retrying, in_flight


async def test_s8_cancel_has_a_result_for_every_phase(scheduler: Scheduler) -> None:
    async def cancel(callback: UUID) -> str:
        response = await scheduler.request("CancelCallbacks", id=str(callback))
        return str(response["result"])

    waiting, retrying, in_flight = await waiting_retrying_in_flight(scheduler)
    assert await cancel(waiting) == "cancelled"
    assert await cancel(waiting) == "cancelled"  # repeated
    assert await cancel(retrying) == "cancelled"
    assert await cancel(in_flight) == "in_flight"
    assert await cancel(await finished(scheduler, "notified")) == "already_notified"
    assert await cancel(await finished(scheduler, "failed")) == "already_failed"
    assert await cancel(uuid4()) == "not_found"
    # No main retry follows for the callback in flight.
    await scheduler.settle(dispatch_failed(in_flight))
    assert (await scheduler.status(in_flight))["status"] == "cancelled"
    assert await scheduler.dispatch() == []


async def test_s8_a_callback_cancelled_in_flight_is_not_dispatched_when_its_lease_expires(
    scheduler: Scheduler,
) -> None:
    callback = await scheduler.create()
    await scheduler.make_due(callback)
    await scheduler.dispatch()
    await scheduler.request("CancelCallbacks", id=str(callback))
    await scheduler.make_due(callback)  # the lease has expired
    assert await scheduler.dispatch() == []
    assert (await scheduler.status(callback))["status"] == "cancelled"


async def test_s8_reschedule_has_a_result_for_every_phase(scheduler: Scheduler) -> None:
    async def reschedule(callback: UUID) -> str:
        response = await scheduler.request("RescheduleCallback", id=str(callback), delay=7200)
        return str(response["result"])

    waiting, retrying, in_flight = await waiting_retrying_in_flight(scheduler)
    assert await reschedule(waiting) == "rescheduled"
    assert await reschedule(retrying) == "rescheduled"
    assert (await scheduler.status(retrying))["status"] == "scheduled"
    assert await reschedule(in_flight) == "in_flight"
    for status in ("notified", "failed", "cancelled"):
        assert await reschedule(await finished(scheduler, status)) == f"already_{status}"
    assert await reschedule(uuid4()) == "not_found"
    # Facts of a dispatch before the reschedule are ignored.
    await scheduler.settle(delivered(retrying))
    assert (await scheduler.status(retrying))["status"] == "scheduled"


async def test_s8_a_rescheduled_callback_is_dispatched_at_its_new_time(
    scheduler: Scheduler,
) -> None:
    callback = await scheduler.create()
    await scheduler.request("RescheduleCallback", id=str(callback), delay=0)
    assert len(await scheduler.dispatch()) == 1


async def test_s8_cancel_by_keys_and_cancel_a_whole_group(scheduler: Scheduler) -> None:
    for number in range(3):
        await scheduler.create(group_key="g", event_key=f"e{number}")
    other = await scheduler.create(group_key="h")
    await finished(scheduler, "notified", group_key="g")
    one = await scheduler.request("CancelCallbacks", group_key="g", event_key="e0")
    assert one["result"] == "cancelled"
    group = await scheduler.request("CancelCallbacks", group_key="g")
    assert group["counts"] == {"cancelled": 3, "already_notified": 1}
    assert len(group["items"]) == 4
    assert (await scheduler.status(other))["status"] == "scheduled"
    assert (await scheduler.request("CancelCallbacks", group_key="none"))["counts"] == {}


@pytest.mark.parametrize(
    ("operation", "more"),
    [("GetCallback", {}), ("CancelCallbacks", {}), ("RescheduleCallback", {"delay": 1})],
)
@pytest.mark.parametrize("other", [None, "shop2", ""])
async def test_s9_a_callback_of_another_client_is_not_found(
    scheduler: Scheduler, operation: str, more: dict[str, Any], other: str | None
) -> None:
    callback = await scheduler.create(client="shop", group_key="g", event_key="e")
    for selector in ({"id": str(callback)}, {"group_key": "g", "event_key": "e"}):
        response = await scheduler.request(operation, other, **selector, **more)
        assert response.get("result", response.get("code")) == "not_found"
        assert response.get("id") is None
    assert (await scheduler.status(callback, "shop"))["status"] == "scheduled"


async def test_s9_lists_groups_and_retries_contain_only_the_client_s_own_callbacks(
    scheduler: Scheduler,
) -> None:
    await scheduler.create(client="shop", group_key="g")
    callback = await scheduler.create(client="shop")
    await scheduler.make_due(callback)
    await scheduler.dispatch()
    await scheduler.settle(dispatch_failed(callback, final=True))
    for other in (None, "bank"):
        for operation, filters in (
            ("ListCallbacks", {}),
            ("ListCallbacks", {"status": "failed"}),
            ("ListCallbacks", {"group_key": "g"}),
            ("CancelCallbacks", {"group_key": "g"}),
        ):
            assert (await scheduler.request(operation, other, **filters))["items"] == []
        retried = await scheduler.request("RetryCallbacks", other, id=str(callback))
        assert retried["count"] == 0
    assert len((await scheduler.request("ListCallbacks", "shop"))["items"]) == 2


async def test_s9_only_clients_with_a_ticket_get_a_ticket_of_ringback(
    scheduler: Scheduler,
) -> None:
    await scheduler.create(client="shop", delay=0)
    await scheduler.create(delay=0)
    await scheduler.dispatcher.drain(10)
    with_ticket, without = sorted(
        (json.loads(message.body) for message in scheduler.broker.sent),
        key=lambda body: not body["headers"],
    )
    assert with_ticket["headers"]["X-Service-Ticket"]
    assert with_ticket["client_id"] == "shop"
    assert without["headers"] == {}


async def test_finding_a15_the_ticket_header_is_a_setting(database_url: str) -> None:
    header = "X-Ya-Service-Ticket"
    async with schedulers(database_url, ticket_header=header) as (scheduler,):
        handler = Handler(
            scheduler.intake,
            scheduler.operations,
            TicketVerifier(TICKET_KEY),
            anonymous=False,
            ticket_header=header,
        )
        ticket = TicketIssuer(shared_key(TICKET_KEY)).issue("shop", lifetime=60)
        command = ScheduleCallback.model_validate_json(json.dumps({"url": URL, "delay": 0}))
        sent = {name: Properties(headers={name.lower(): ticket}) for name in (header, "X-Other")}
        await handler.handle(Message("m", sent[header], b"{}"), command)
        with pytest.raises(PermanentError, match=f"required in the header {header}"):
            await handler.handle(Message("m", sent["X-Other"], b"{}"), command)
        await scheduler.dispatcher.drain(10)
        (notification,) = (json.loads(message.body) for message in scheduler.broker.sent)
        assert list(notification["headers"]) == [header]

        forged = {"headers": {header.lower(): "forged"}}
        create: dict[str, Any] = {"url": URL, "delay": 5, "notify_scheme": forged}
        rejected = await scheduler.request("CreateCallback", "shop", callback=create)
        (error,) = rejected["errors"]
        assert error["field"] == "notify_scheme.headers"
        assert "reserved" in error["message"]


async def test_lists_are_paged_by_cursor_newest_first(scheduler: Scheduler) -> None:
    created = [str(await scheduler.create(group_key="g" if n % 2 else "h")) for n in range(9)]
    found, cursor = [], None
    while True:
        more: dict[str, str] = {"cursor": cursor} if cursor else {}
        page = await scheduler.request("ListCallbacks", limit=2, **more)
        found += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == created[::-1]
    group = await scheduler.request("ListCallbacks", group_key="g", limit=4)
    assert [item["id"] for item in group["items"]] == created[1::2][::-1]
    assert group["next_cursor"] is None
    rejected = await scheduler.request("ListCallbacks", cursor="bm9uc2Vuc2U=")
    assert rejected["errors"][0]["field"] == "cursor"
    assert (await scheduler.request("ListCallbacks", limit=10**9))["code"] == "invalid"


async def test_lists_by_status(scheduler: Scheduler) -> None:
    failed = await finished(scheduler, "failed", group_key="g")
    notified = await finished(scheduler, "notified")
    waiting = await scheduler.create()
    for status, callback in (("failed", failed), ("notified", notified), ("scheduled", waiting)):
        page = await scheduler.request("ListCallbacks", status=status)
        assert [item["id"] for item in page["items"]] == [str(callback)]
    of_group = await scheduler.request("ListCallbacks", status="failed", group_key="h")
    assert of_group["items"] == []


async def test_retry_makes_failed_callbacks_due_again(scheduler: Scheduler) -> None:
    failed = [await finished(scheduler, "failed", group_key=key) for key in ("g", "g", "h")]
    dry_run = await scheduler.request("RetryCallbacks", group_key="g", dry_run=True)
    assert (dry_run["count"], await scheduler.dispatch()) == (2, [])
    assert (await scheduler.request("RetryCallbacks", group_key="g"))["count"] == 2
    assert len(await scheduler.dispatch()) == 2
    assert (await scheduler.status(failed[0]))["status"] == "dispatched"
    await scheduler.settle(delivered(failed[0], dispatch=2))
    assert (await scheduler.status(failed[0]))["status"] == "notified"
    assert (await scheduler.request("RetryCallbacks", id=str(failed[0])))["count"] == 0
    assert (await scheduler.request("RetryCallbacks", all=True))["ids"] == [str(failed[2])]
