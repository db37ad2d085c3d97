"""The gateway during faults of the broker, the services or its own process."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import pytest

from deploy.local.broker import Broker
from deploy.local.daemon import free_port
from deploy.local.database import Database
from tests.fakes.alarms import disk_alarm, memory_alarm
from tests.fakes.gateway import Caller, Response, base_url, calling, gateway
from tests.fakes.mailing import posting
from tests.fakes.scheduler import fake_scheduler
from tests.fakes.service import Service
from tests.fakes.system import System, system
from tests.fakes.waiting import until

CALLBACK = {"url": "https://example.com/hook", "run_at": "2030-01-01T12:00:00Z"}
TIMEOUT = {"RINGBACK_GATEWAY_REQUEST_TIMEOUT": "2"}


@asynccontextmanager
async def running(
    directory: Path, amqp_url: str, *arguments: str, **settings: str
) -> AsyncIterator[tuple[Service, Caller]]:
    with gateway(directory, amqp_url, TIMEOUT | settings, *arguments) as service:
        async with calling(await base_url(service)) as call:
            yield service, call


async def test_without_scheduler_and_mailings_requests_are_503_and_readyz_names_the_scheduler(
    tmp_path: Path, amqp_url: str
) -> None:
    async with running(tmp_path, amqp_url) as (service, call):
        await until(lambda: service.logged("broker is ready"))
        requests = {
            "scheduler": ("/v1/callbacks", CALLBACK),
            "mailings": ("/v1/postings", posting()),
        }
        for name, (path, body) in requests.items():
            response = await call("POST", path, body)
            assert f"{name}: no service consumes these requests" in response.problem(503)["detail"]
            assert int(response.headers["Retry-After"]) > 0
        report = await call("GET", "/readyz")
        assert report.status == 503
        assert report.json["parts"]["broker"] == "ok"
        assert "no service consumes" in report.json["parts"]["scheduler"]
        assert not {"mailings", "ingestion"} & report.json["parts"].keys()
        assert (await call("GET", "/healthz")).status == 200


async def test_a_client_beyond_its_rate_limit_gets_429_and_others_are_served(
    tmp_path: Path, amqp_url: str
) -> None:
    limit = {"RINGBACK_GATEWAY_RATE_LIMIT": "0.2"}
    async with running(tmp_path, amqp_url, **limit) as (service, call), fake_scheduler(amqp_url):
        await service.ready()
        assert (await call("GET", "/v1/callbacks")).status == 200
        limited = await call("GET", "/v1/callbacks")
        assert limited.problem(429)["type"] == "urn:ringback:problem:too_many_requests"
        assert 1 <= int(limited.headers["Retry-After"]) <= 5
        assert (await call.as_client("shop")("GET", "/v1/callbacks")).status == 200
        assert (await call("GET", "/openapi.json")).status == 200


async def test_row_1_a_stopped_broker_is_503_until_it_is_back(
    tmp_path: Path, own_broker: Broker
) -> None:
    async with running(tmp_path, own_broker.url) as (service, call):
        async with fake_scheduler(own_broker.url):
            await service.ready()
            assert (await call("POST", "/v1/callbacks", CALLBACK)).status == 201
        own_broker.kill()
        await until(lambda: service.logged("broker is not ready"))
        response = await call("POST", "/v1/callbacks", CALLBACK)
        response.problem(503)
        assert "Retry-After" in response.headers
        own_broker.start()
        async with fake_scheduler(own_broker.url):
            await service.ready()
            assert (await call("POST", "/v1/callbacks", CALLBACK)).status == 201


async def test_row_2_a_suspended_broker_is_504_in_time(tmp_path: Path, own_broker: Broker) -> None:
    async with running(tmp_path, own_broker.url) as (service, call), fake_scheduler(own_broker.url):
        await service.ready()
        own_broker.suspend()
        try:
            loop = asyncio.get_running_loop()
            started = loop.time()
            (await call("POST", "/v1/callbacks", CALLBACK)).problem(504)
            assert loop.time() - started < 4
        finally:
            own_broker.resume()

        async def served() -> bool:
            return (await call("POST", "/v1/callbacks", CALLBACK)).status == 201

        await until(served)


@pytest.mark.parametrize(
    "alarm",
    [
        pytest.param(memory_alarm, id="row_6_memory"),
        pytest.param(disk_alarm, id="row_7_disk", marks=pytest.mark.slow),
    ],
)
async def test_rows_6_and_7_an_alarm_is_503_within_5_seconds_until_it_clears(
    tmp_path: Path, own_broker: Broker, alarm: Callable[[Broker], AbstractContextManager[None]]
) -> None:
    async with running(tmp_path, own_broker.url) as (service, call), fake_scheduler(own_broker.url):
        await service.ready()
        with alarm(own_broker):

            async def reported() -> bool:
                return "alarm" in (await call("GET", "/readyz")).json["parts"]["broker"]

            await until(reported, 5)  # before any request during the alarm
            response = await call("POST", "/v1/callbacks", CALLBACK)
            assert "alarm" in response.problem(503)["detail"]
        await service.ready()
        assert (await call("POST", "/v1/callbacks", CALLBACK)).status == 201


async def test_row_32_sigterm_finishes_requests_in_flight(tmp_path: Path, amqp_url: str) -> None:
    started = asyncio.Event()
    async with (
        running(tmp_path, amqp_url) as (service, call),
        fake_scheduler(amqp_url) as scheduler,
    ):
        await service.ready()

        def slow(_: object) -> None:
            started.set()

        scheduler.responses["CreateCallback"] = slow
        response = asyncio.create_task(call("POST", "/v1/callbacks", CALLBACK))
        await started.wait()
        service.signal(signal.SIGTERM)
        await until(lambda: service.logged("stopping on SIGTERM"))
        await scheduler.respond_late({"ok": {"id": "late", "status": "scheduled", "run_at": "x"}})
        assert (await response).status == 201
        assert await service.exit_code() == 0


async def test_several_workers_share_the_port_and_the_metrics(
    tmp_path: Path, amqp_url: str
) -> None:
    port = str(free_port())
    arguments = ("--workers", "2")
    given = {"RINGBACK_HTTP_PORT": port}
    with gateway(tmp_path, amqp_url, given, *arguments) as service:
        async with fake_scheduler(amqp_url):
            await service.ready()
            for _ in range(20):  # one connection each, so that the kernel distributes them
                async with calling(f"http://127.0.0.1:{port}") as call:
                    assert (await call("POST", "/v1/callbacks", CALLBACK)).status == 201
            name, created = "ringback_http_requests_total", {"method": "POST", "status": "201"}
            assert await service.metric(name, **created) == 20
            async with calling(f"http://127.0.0.1:{port}") as call:
                text = (await call("GET", "/metrics")).text
            assert re.search(
                rf'{name}{{method="POST",route="/v1/callbacks",status="201"}} 20', text
            )


async def test_a_port_in_use_is_reported_and_ends_the_process(
    tmp_path: Path, amqp_url: str
) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with gateway(tmp_path, amqp_url, {"RINGBACK_HTTP_PORT": str(port)}) as service:
            assert await service.exit_code() == 1
            assert service.logged("cannot start")


@pytest.fixture
def services(tmp_path: Path, amqp_url: str, own_database: Database) -> Iterator[System]:
    """Run scheduler, callback and gateway on a database that the test may stop.

    The scheduler waits 3 s for the database, so the gateway's timeout is longer.
    """
    settings = {"RINGBACK_GATEWAY_REQUEST_TIMEOUT": "5"}
    names = ("scheduler", "callback")
    with system(tmp_path, amqp_url, own_database.url, *names, **settings) as started:
        yield started


@pytest.fixture
async def call(services: System) -> AsyncIterator[Caller]:
    await services.ready()
    async with services.calling() as caller:
        yield caller


async def test_row_19_a_stopped_database_is_503_with_retry_after_until_it_is_back(
    call: Caller, services: System, own_database: Database
) -> None:
    assert (await call("POST", "/v1/callbacks", CALLBACK)).status == 201
    own_database.stop(immediate=True)

    async def unavailable() -> bool:
        response = await call("POST", "/v1/callbacks", CALLBACK)
        # The outcome of a request during the stop may be unknown.
        assert response.status in (503, 504)
        return response.status == 503 and int(response.headers["Retry-After"]) > 0

    await until(unavailable)
    report = await call("GET", "/readyz")
    assert report.status == 503
    assert report.json["parts"]["broker"] == "ok"
    own_database.start()
    await services.ready()
    assert (await call("POST", "/v1/callbacks", CALLBACK)).status == 201


async def test_after_a_lost_response_a_repeat_with_the_same_key_creates_nothing_twice(
    call: Caller, services: System
) -> None:
    callback = CALLBACK | {"group_key": "once"}

    async def create() -> Response:
        return await call("POST", "/v1/callbacks", callback, Idempotency_Key="order-7")

    waiting = [asyncio.create_task(create()) for _ in range(20)]
    await asyncio.sleep(0)  # let them be sent, so that only some get a response
    services["scheduler"].signal(signal.SIGSTOP)
    lost = await asyncio.gather(*waiting)
    (await create()).problem(504)
    assert {response.status for response in lost} <= {201, 504}
    services["scheduler"].signal(signal.SIGCONT)
    await services.ready()
    repeated = await create()
    assert repeated.status == 201
    created = {response.json["id"] for response in lost if response.status == 201}
    assert created <= {repeated.json["id"]}
    [stored] = (await call("GET", "/v1/groups/once/callbacks")).json["items"]
    assert stored["id"] == repeated.json["id"]
