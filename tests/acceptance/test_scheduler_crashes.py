"""The scheduler killed, suspended, and without its database: no callback is lost or early."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import pytest

from deploy.local.database import Database
from services.scheduler.store import CLAIM_LEASE
from shared.contracts.schedules import callback_id_of_message
from tests.acceptance.crashing_scheduler import POINTS
from tests.fakes.callback_service import (
    FakeCallbackService,
    fake_callback_service,
    gather_limited,
    schedules_client,
)
from tests.fakes.crash_points import slow_except
from tests.fakes.receivers import respond, serve
from tests.fakes.scheduling import SECRETS_KEY, URL, connected, delivered, schedulers
from tests.fakes.service import RUN_CALLBACK, Service, running
from tests.fakes.waiting import until

RUN = ("-m", "services", "run", "scheduler", "--metrics-port", "0")
Start = tuple[Path, str, dict[str, str], tuple[str, ...]]
TIMEOUT = 0.5  # seconds for one attempt
# Seconds that an arrival may seem early, because due times are rounded to microseconds.
TOLERANCE = 0.001


def settings(database_url: str) -> dict[str, str]:
    """Return default settings."""
    return {"RINGBACK_DATABASE_URL": database_url, "RINGBACK_SECRETS_KEY": SECRETS_KEY}


@pytest.fixture
async def empty_url(database_url: str) -> str:
    async with connected(database_url):
        return database_url


# No retries within a dispatch, so that each test is short.
COMMAND: Mapping[str, Any] = {
    "url": URL,
    "retry_params": {"quick_retries_count": 0},
    "notify_scheme": {"timeout": TIMEOUT},
}


async def schedule(
    callbacks: FakeCallbackService, due: Mapping[str, float], command: Mapping[str, Any] = COMMAND
) -> None:
    """Schedule a callback for each message id, due at these seconds since the epoch."""
    await gather_limited(
        *(
            callbacks.send(
                {**command, "run_at": datetime.fromtimestamp(at, UTC).isoformat()},
                message_id=message_id,
            )
            for message_id, at in due.items()
        )
    )


def early_arrivals(callbacks: FakeCallbackService, due: Mapping[str, float]) -> list[str]:
    """Return the callbacks that arrived before their due time."""
    due_times = {str(callback_id_of_message("", key)): at for key, at in due.items()}
    return [each.id for each in callbacks.arrivals if each.at < due_times[each.id] - TOLERANCE]


@pytest.mark.parametrize("point", slow_except(POINTS, "after the claim"))
async def test_rows_16_and_17_a_crash_at_any_point_repeats_at_most_once_and_loses_nothing(
    amqp_url: str, empty_url: str, tmp_path: Path, point: str
) -> None:
    crash = ("-m", "tests.acceptance.crashing_scheduler", point)
    async with AsyncExitStack() as stack:
        dying = stack.enter_context(running(tmp_path, amqp_url, settings(empty_url), crash))
        await until(lambda: dying.logged("requests is ready"))
        callbacks = await stack.enter_async_context(fake_callback_service(amqp_url))
        now = time.time()
        due = {
            f"{kind}-{n}": now + (1 if kind == "later" else -1)
            for n in range(5)
            for kind in ("now", "later")
        }
        await schedule(callbacks, due)
        assert await dying.exit_code() == -9, dying.output
        died_at = time.time()
        with running(tmp_path, amqp_url, settings(empty_url), RUN) as second:
            await second.ready()
            expected = {str(callback_id_of_message("", key)) for key in due}
            await until(lambda: callbacks.reported("notified") >= expected, 30)
            assert time.time() - died_at < 30
            arrivals = Counter(each.id for each in callbacks.arrivals)
            assert arrivals.keys() == expected
            assert max(arrivals.values()) <= 2
            assert early_arrivals(callbacks, due) == []
            assert await callbacks.dead_letters() == []


@pytest.mark.slow
async def test_row_18_a_scheduler_suspended_beyond_its_lease_settles_nothing_wrongly(
    amqp_url: str, empty_url: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        replicas = [
            stack.enter_context(running(tmp_path, amqp_url, settings(empty_url), RUN))
            for _ in range(2)
        ]
        for each in replicas:
            await each.ready()
        callbacks = await stack.enter_async_context(fake_callback_service(amqp_url))
        now = time.time()
        due = {f"m-{n}": now + 1 + n / 100 for n in range(300)}
        await schedule(callbacks, due)
        await until(lambda: len(callbacks.arrivals) > 30)
        replicas[0].signal(signal.SIGSTOP)
        await asyncio.sleep(CLAIM_LEASE * 1.2)  # the length of the suspension
        replicas[0].signal(signal.SIGCONT)
        expected = {str(callback_id_of_message("", key)) for key in due}
        await until(lambda: callbacks.reported("notified") >= expected, 30)
        assert early_arrivals(callbacks, due) == []
        repeats = len(callbacks.arrivals) - len(expected)
        assert repeats <= 500  # one batch


async def _kill_all(
    stack: AsyncExitStack, services: list[Service], starts: Sequence[Start], at: float
) -> None:
    """Kill all services with -9 at a time, and start them again at once."""
    await asyncio.sleep(at - time.time())
    for service in services:
        service.kill()
    services[:] = [stack.enter_context(running(*start)) for start in starts]


async def test_finding_a1_everything_due_is_delivered_within_30_s_of_a_kill_of_all_processes(
    amqp_url: str, empty_url: str, tmp_path: Path
) -> None:
    count = 1500
    runs = (RUN, RUN, RUN_CALLBACK, RUN_CALLBACK)
    starts = [(tmp_path, amqp_url, settings(empty_url), run) for run in runs]
    async with AsyncExitStack() as stack:
        services = [stack.enter_context(running(*start)) for start in starts]
        for service in services:
            await service.ready()
        receiver = await stack.enter_async_context(serve(respond()))
        callbacks = await stack.enter_async_context(schedules_client(amqp_url))
        now = time.time()
        due = {f"m-{n}": now + 3 + n / count for n in range(count)}
        await schedule(callbacks, due, {"url": receiver.url})
        for killed_at in (now + 3.3, now + 8.3, now + 13.3):
            await _kill_all(stack, services, starts, killed_at)
        restarted_at = time.time()
        expected = {str(callback_id_of_message("", key)) for key in due}

        def delivered_ids() -> Counter[str]:
            return Counter(each.headers["webhook-id"] for each in receiver.requests)

        await until(lambda: delivered_ids().keys() >= expected, 30)
        late = time.time() - restarted_at
        repeats = sum(delivered_ids().values()) - count
        print(f"all delivered {late:.1f} s after the last restart, {repeats} repeats")  # noqa: T201 - figures to read
        assert delivered_ids().keys() == expected
        assert repeats <= count
        await until(lambda: callbacks.reported("notified") >= expected, 30)
        assert await callbacks.dead_letters() == []


async def test_finding_a9_a_callback_service_whose_clock_is_ahead_delivers_every_callback(
    amqp_url: str, empty_url: str, tmp_path: Path
) -> None:
    ahead = ("-m", "tests.acceptance.callback_ahead")
    async with AsyncExitStack() as stack:
        scheduler = stack.enter_context(running(tmp_path, amqp_url, settings(empty_url), RUN))
        await scheduler.ready()
        await stack.enter_context(running(tmp_path, amqp_url, {}, ahead)).ready()
        receiver = await stack.enter_async_context(serve(respond()))
        callbacks = await stack.enter_async_context(schedules_client(amqp_url))
        now = time.time()
        body = {"url": receiver.url, "retry_params": {"base_delay": 0.5}}
        for n in range(20):
            run_at = datetime.fromtimestamp(now + 2 + n / 20, UTC).isoformat()
            await callbacks.send(body | {"run_at": run_at})
        await until(lambda: len(callbacks.reported("notified")) == 20, 30)
        assert len(receiver.requests) == 20
        assert scheduler.logged("callback service clock ahead")
        assert 3590 < await scheduler.metric("ringback_callback_clock_skew_seconds") < 3601


async def _restart(server: Database, after: float) -> None:
    await asyncio.sleep(after)
    await asyncio.to_thread(server.stop, immediate=True)
    await asyncio.to_thread(server.start)


async def _kill_in_turn(
    stack: AsyncExitStack, replicas: list[Service], start: tuple[Path, str, dict[str, str]]
) -> None:
    for number in (0, 1, 0):
        await asyncio.sleep(2)
        replicas[number].kill()
        replicas[number] = stack.enter_context(running(*start, RUN))


@pytest.mark.slow
async def test_s11_rows_19_and_23_killed_replicas_and_a_restarted_database_notify_every_callback(
    amqp_url: str, own_database: Database, tmp_path: Path
) -> None:
    count, seconds = 5000, 8.0
    async with connected(own_database.url):
        pass
    start = tmp_path, amqp_url, settings(own_database.url)
    async with AsyncExitStack() as stack:
        replicas = [stack.enter_context(running(*start, RUN)) for _ in range(2)]
        for each in replicas:
            await each.ready()
        callbacks = await stack.enter_async_context(fake_callback_service(amqp_url))
        now = time.time()
        due = {f"m-{n}": now + 2 + seconds * n / count for n in range(count)}
        async with asyncio.TaskGroup() as faults:
            faults.create_task(schedule(callbacks, due))
            faults.create_task(_restart(own_database, 4))
            faults.create_task(_kill_in_turn(stack, replicas, start))
        expected = {str(callback_id_of_message("", key)) for key in due}
        await until(lambda: len(callbacks.reported("notified") & expected) == count)
        assert early_arrivals(callbacks, due) == []
        assert {each.id for each in callbacks.arrivals} == expected
        repeats = len(callbacks.arrivals) - count
        print(f"{repeats} repeats of {count}")  # noqa: T201 - a figure to read
        assert repeats <= count
        assert await callbacks.dead_letters() == []


async def test_row_19_without_its_database_the_scheduler_waits_and_loses_nothing(
    amqp_url: str, own_database: Database, tmp_path: Path
) -> None:
    async with connected(own_database.url):
        pass
    with running(tmp_path, amqp_url, settings(own_database.url), RUN) as service:
        await service.ready()
        async with fake_callback_service(amqp_url) as callbacks:
            await asyncio.to_thread(own_database.stop, immediate=True)
            now = time.time()
            due = {f"m-{n}": now for n in range(100)}
            await schedule(callbacks, due)
            await until(lambda: "database" in service.output and _lost_database(service))
            assert callbacks.arrivals == []
            await asyncio.to_thread(own_database.start)
            expected = {str(callback_id_of_message("", key)) for key in due}
            await until(lambda: callbacks.reported("notified") >= expected, 30)
            assert await callbacks.dead_letters() == []


def _lost_database(service: Service) -> bool:
    return bool(service.logged("database is not ready"))


@pytest.mark.slow
async def test_row_22_an_idle_transaction_does_not_slow_claims(empty_url: str) -> None:
    async with schedulers(empty_url) as (scheduler,):
        idle = await asyncpg.connect(empty_url)
        await idle.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await idle.fetch("SELECT count(*) FROM scheduler.scheduled_callbacks")

        async def claim_time(rounds: int) -> float:
            """Return the median seconds of a claim; a busy machine slows only some of them."""
            durations = []
            for _ in range(rounds):
                commands = [{"url": URL, "delay": 0.001}] * 200
                created = await scheduler.request("CreateCallbacks", callbacks=commands)
                await asyncio.sleep(0.002)  # until they are due
                started = time.perf_counter()
                await scheduler.dispatch()
                durations.append(time.perf_counter() - started)
                await scheduler.settle(*(delivered(item["id"]) for item in created["items"]))
            return median(durations)

        before = await claim_time(20)
        await claim_time(
            100
        )  # inserts and deletes 20,000 rows, whose dead index entries vacuum cannot remove
        after = await claim_time(20)
        await idle.close()
        assert after <= max(5 * before, 0.05)
