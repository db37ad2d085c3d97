"""A gateway or service killed during a request: the caller's repeat finds what was created."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.acceptance.crashing_rpc import GATEWAY_POINTS, SERVICE_POINTS
from tests.fakes.crash_points import slow_except
from tests.fakes.gateway import TICKET_KEY, Caller, Response, base_url, calling
from tests.fakes.mailing import posting
from tests.fakes.service import running
from tests.fakes.system import SECRETS_KEY, fresh_database, system
from tests.fakes.waiting import until

PATHS = {"scheduler": "/v1/callbacks", "mailings": "/v1/postings"}
BODIES: dict[str, dict[str, Any]] = {
    "scheduler": {"url": "https://example.com/hook", "run_at": "2030-01-01T12:00:00Z"},
    "mailings": posting(),
}
ACCEPTED = {"scheduler": 201, "mailings": 202}
# Seconds. A second process starts within this time, and gets the request.
TIMEOUT = 40
# A response that is lost is missed after this time.
SHORT_TIMEOUT = 4


@pytest.fixture
def own_database_url(database_url: str) -> Iterator[str]:
    with fresh_database(database_url) as url:
        yield url


def crash(service: str, point: str) -> tuple[str, ...]:
    return ("-m", "tests.acceptance.crashing_rpc", service, point)


async def create(call: Caller, service: str, **headers: str) -> Response:
    return await call("POST", PATHS[service], BODIES[service], **headers)


async def stored(call: Caller, service: str) -> set[str]:
    return {item["id"] for item in (await call("GET", PATHS[service])).json["items"]}


@pytest.mark.parametrize("service", ["scheduler", pytest.param("mailings", marks=pytest.mark.slow)])
@pytest.mark.parametrize("point", slow_except(SERVICE_POINTS, SERVICE_POINTS[2]))
async def test_finding_a3_and_a4_a_service_killed_during_a_request_creates_nothing_twice(
    amqp_url: str, own_database_url: str, tmp_path: Path, service: str, point: str
) -> None:
    """Two requests are in progress: one with an Idempotency-Key, one without."""
    lost = point == "between the ack and the response"
    timeout = {"RINGBACK_GATEWAY_REQUEST_TIMEOUT": str(SHORT_TIMEOUT if lost else TIMEOUT)}
    settings = {"RINGBACK_DATABASE_URL": own_database_url, "RINGBACK_SECRETS_KEY": SECRETS_KEY}
    settings["RINGBACK_TICKET_KEY"] = TICKET_KEY
    run = ("-m", "services", "run", service, "--metrics-port", "0")
    async with AsyncExitStack() as stack:
        services = stack.enter_context(system(tmp_path, amqp_url, own_database_url, **timeout))
        dying = stack.enter_context(running(tmp_path, amqp_url, settings, crash(service, point)))
        await dying.ready()
        await services.ready()
        call = await stack.enter_async_context(services.calling())
        keyed = asyncio.create_task(create(call, service, Idempotency_Key="order-7"))
        plain = asyncio.create_task(create(call, service))
        assert await dying.exit_code() == -9, dying.output
        second = stack.enter_context(running(tmp_path, amqp_url, settings, run))
        await second.ready()
        responses = [await keyed, await plain]
        if lost:
            # The effect is unknown, which is never reported as unavailable.
            statuses = {response.status for response in responses}
            assert 504 in statuses
            assert statuses <= {ACCEPTED[service], 504}
        else:
            assert [response.status for response in responses] == [ACCEPTED[service]] * 2
        repeated = await create(call, service, Idempotency_Key="order-7")
        assert repeated.status == ACCEPTED[service]
        accepted = [each for each in (*responses, repeated) if each.status != 504]
        found = await stored(call, service)
        assert {response.json["id"] for response in accepted} <= found
        assert len(found) <= 2


@pytest.mark.parametrize("point", slow_except(GATEWAY_POINTS, "after the request"))
async def test_finding_a3_a_gateway_killed_during_a_request_creates_nothing_twice(
    amqp_url: str, own_database_url: str, tmp_path: Path, point: str
) -> None:
    settings = {"RINGBACK_HTTP_PORT": "0", "RINGBACK_TICKET_KEY": TICKET_KEY}
    with system(tmp_path, amqp_url, own_database_url, "scheduler") as services:
        await services.ready()
        with running(tmp_path, amqp_url, settings, crash("gateway", point)) as dying:
            await dying.ready()
            async with calling(await base_url(dying)) as call:
                with pytest.raises(aiohttp.ClientError):
                    await create(call, "scheduler", Idempotency_Key="order-7")
            assert await dying.exit_code() == -9
        async with services.calling() as call:
            if point == "before the request":
                before = await stored(call, "scheduler")
                assert before == set()
            else:
                before = await until(partial(stored, call, "scheduler"))
            repeated = await create(call, "scheduler", Idempotency_Key="order-7")
            assert repeated.status == 201
            found = await stored(call, "scheduler")
            assert found == {repeated.json["id"]}
            assert before <= found
