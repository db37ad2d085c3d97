"""M2, M4, M5: mailings start once, in time and in local hours, although processes are killed."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from tests.acceptance.crashing_mailings import POINTS
from tests.fakes.campaigns import soon
from tests.fakes.crash_points import slow_except
from tests.fakes.delivering import settings
from tests.fakes.gateway import Caller
from tests.fakes.mailing import RUN_MAILINGS
from tests.fakes.sandbox import Sandbox, running_sandbox
from tests.fakes.service import running
from tests.fakes.system import SECRETS_KEY, System, fresh_database, system
from tests.fakes.waiting import until


@pytest.fixture
def own_database_url(database_url: str) -> Iterator[str]:
    with fresh_database(database_url) as url:
        yield url


@asynccontextmanager
async def services(
    directory: Path, amqp_url: str, database_url: str, *names: str
) -> AsyncIterator[tuple[System, Sandbox, Caller, dict[str, str]]]:
    """Run services, a gateway and a sandbox, and yield the settings of one more service."""
    async with running_sandbox() as sandbox:
        environment = settings(sandbox, database_url, RINGBACK_SECRETS_KEY=SECRETS_KEY)
        with system(directory, amqp_url, database_url, *names, **environment) as started:
            await started.ready()
            async with started.calling() as call:
                yield started, sandbox, call.as_client("shop"), environment


async def add_clients(call: Caller, zone: str, *phones: str) -> None:
    for phone in phones:
        created = await call("POST", "/v1/clients", {"phone": phone, "timezone": zone})
        assert created.status == 201, created.text


async def create(call: Caller, **fields: Any) -> str:
    """Create a mailing, repeat the request until it is answered, and return its path."""
    body = {"text": "Hello", "end_at": soon(600), **fields}
    paths: list[str] = []

    async def created() -> bool:
        response = await call("POST", "/v1/mailings", body, Idempotency_Key="k")
        paths.append(response.headers.get("Location", ""))
        return response.status == 201

    await until(created, 60)
    return paths[-1]


async def wait_for_status(call: Caller, path: str, status: str) -> dict[str, Any]:
    async def arrived() -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = (await call("GET", path)).json
        except aiohttp.ClientError:
            return None
        return found if found.get("status") == status else None

    result: dict[str, Any] = await until(arrived, 60)
    return result


async def phones(sandbox: Sandbox) -> list[str]:
    """Return the phones that have got an SMS, in order."""
    items = (await sandbox.get("/api/sms", limit=1000, accepted="true"))["items"]
    return sorted(phone for each in items for phone in each["to"])


@pytest.mark.parametrize("point", slow_except(POINTS, "after the start"))
async def test_m4_a_crash_at_any_point_starts_a_mailing_once_and_in_time(
    amqp_url: str, own_database_url: str, tmp_path: Path, point: str
) -> None:
    crash = ("-m", "tests.acceptance.crashing_mailings", point)
    clients = [f"7916000000{number}" for number in range(5)]
    async with services(tmp_path, amqp_url, own_database_url, "scheduler", "delivery") as running_:
        _, sandbox, call, environment = running_
        with running(tmp_path, amqp_url, environment, RUN_MAILINGS) as first:
            await first.ready()
            await add_clients(call, "UTC", *clients)
        with running(tmp_path, amqp_url, environment, crash) as dying:
            await dying.ready()
            creating = asyncio.create_task(create(call, start_at=soon(3)))
            assert await dying.exit_code() == -9, dying.output
        with running(tmp_path, amqp_url, environment, RUN_MAILINGS):
            path = await creating
            found = await wait_for_status(call, path, "finished")
            assert found["started_at"] >= found["start_at"]
            assert (await call("GET", "/v1/mailings")).json["items"] == [found]
            assert await phones(sandbox) == clients
            items = (await call("GET", f"{path}/messages")).json["items"]
            assert [each["status"] for each in items] == ["sent"] * len(clients)


@pytest.mark.slow
async def test_m4_a_mailing_starts_a_few_seconds_late_without_the_scheduler(
    amqp_url: str, own_database_url: str, tmp_path: Path
) -> None:
    async with services(
        tmp_path, amqp_url, own_database_url, "mailings", "scheduler", "delivery"
    ) as (started, sandbox, call, _):
        await add_clients(call, "UTC", "79160000000")
        path = await create(call, start_at=soon(15))
        connection = await asyncpg.connect(own_database_url)
        requested = "SELECT start_requested_at IS NOT NULL FROM mailings.mailings"
        await until(lambda: connection.fetchval(requested))
        await connection.close()
        started["scheduler"].kill()
        found = await wait_for_status(call, path, "finished")
        late = datetime.fromisoformat(found["started_at"]) - datetime.fromisoformat(
            found["start_at"]
        )
        assert late >= timedelta(seconds=5), "the scheduler was killed too late for this test"
        assert await phones(sandbox) == ["79160000000"]


async def test_m2_m5_only_clients_whose_hours_have_begun_get_a_message(
    amqp_url: str, own_database_url: str, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    # Open now in UTC, and for some more hours; closed in the zone that is twelve hours ahead.
    hours = {
        "from": (now - timedelta(hours=2)).strftime("%H:%M"),
        "to": (now + timedelta(hours=3)).strftime("%H:%M"),
    }
    async with services(
        tmp_path, amqp_url, own_database_url, "mailings", "scheduler", "delivery"
    ) as (_, sandbox, call, _):
        await add_clients(call, "UTC", "79160000001", "79160000002")
        await add_clients(call, "Etc/GMT-12", "79160000003")
        path = await create(
            call, start_at=soon(1), end_at=soon(86_400), local_hours=hours, text="{{ user.phone }}"
        )

        async def settled() -> bool:
            items = (await call("GET", f"{path}/messages?status=sent")).json["items"]
            return len(items) == 2

        await until(settled, 30)
        assert (await call("GET", path)).json["status"] == "running"
        assert (await call("POST", f"{path}/pause")).status == 200
        assert (await call("POST", f"{path}/resume")).status == 200
        assert await phones(sandbox) == ["79160000001", "79160000002"]
        cancelled = await call("POST", f"{path}/cancel")
        assert (cancelled.status, cancelled.json["status"]) == (200, "cancelled")
        items = (await call("GET", f"{path}/messages")).json["items"]
        assert [each["status"] for each in items] == ["sent", "sent"]
        assert await phones(sandbox) == ["79160000001", "79160000002"]
