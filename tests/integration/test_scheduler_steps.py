"""The scheduler reports the steps of a callback to the journal."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from shared.contracts.schedule_facts import (
    ScheduleCreated,
    ScheduleDispatched,
    ScheduleRescheduled,
)
from tests.fakes.scheduling import ALLOWED_EXCHANGE, URL, Scheduler, schedulers

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
async def scheduler(database_url: str) -> AsyncIterator[Scheduler]:
    async with schedulers(database_url) as (one,):
        yield one


def steps(scheduler: Scheduler, callback: UUID) -> list[Any]:
    return [step for step in scheduler.broker.steps if step.schedule_id == callback]


async def test_n6_each_step_of_a_callback_is_reported(scheduler: Scheduler) -> None:
    callback = await scheduler.create(
        "shop", group_key="user-7", event_key="reminder", context=1, repeat={"every": 60}
    )
    await scheduler.request("RescheduleCallback", "shop", id=str(callback), delay=7200)
    await scheduler.request("RunCallback", "shop", id=str(callback))
    await scheduler.dispatch()

    created, moved, started, dispatched = steps(scheduler, callback)
    assert isinstance(created, ScheduleCreated)
    assert (created.client_id, created.group_key, created.event_key) == (
        "shop",
        "user-7",
        "reminder",
    )
    assert (created.target, created.recurs) == ("https://shop.example.com:443", True)
    assert isinstance(moved, ScheduleRescheduled)
    assert isinstance(started, ScheduleRescheduled)
    assert created.run_at < moved.run_at > started.run_at
    assert isinstance(dispatched, ScheduleDispatched)
    assert (dispatched.callback_id, dispatched.dispatch) == (f"{callback}.1", 1)
    assert 0 <= dispatched.lag < 60


async def test_n6_a_replaced_callback_has_a_new_due_time_and_a_repeat_reports_nothing(
    scheduler: Scheduler,
) -> None:
    first = {"url": URL, "delay": 3600, "event_key": "e"}
    created = await scheduler.request("PutCallback", callback=first)
    await scheduler.request("PutCallback", callback=first | {"delay": 7200})
    callback = UUID(created["id"])
    assert [step.type for step in steps(scheduler, callback)] == [
        "schedule.created",
        "schedule.rescheduled",
    ]


async def test_n6_a_notification_over_amqp_has_no_target(scheduler: Scheduler) -> None:
    scheme = {"transport": "amqp", "exchange": ALLOWED_EXCHANGE, "routing_key": "k"}
    callback = await scheduler.create(notify_scheme=scheme)
    [created] = steps(scheduler, callback)
    assert created.target is None
