"""Fixtures of several modules: services in processes, and the parts of mailings."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from tests.fakes.broker_client import BrokerClient, broker_client
from tests.fakes.campaigns import CampaignProcess, running_campaigns
from tests.fakes.gateway import Caller, base_url, calling, gateway
from tests.fakes.mailing import Mailings, UserLists, empty_mailings, running_mailings, user_lists
from tests.fakes.sandbox import Sandbox, running_sandbox
from tests.fakes.scheduler import FakeScheduler, fake_scheduler
from tests.fakes.service import Service, running
from tests.fakes.system import StartSystem, System, fresh_database, system
from tests.fakes.virtual_host import virtual_host
from tests.fakes.waiting import until

SECRETS = '{"billing": "billing-secret-canary", "rotating": ["old-secret-canary", "new-canary"]}'


@pytest.fixture(scope="module")
def shared_amqp_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URL of a virtual host for the tests of one module."""
    with virtual_host(request) as url:
        yield url


@pytest.fixture(scope="module")
def service(shared_amqp_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start a callback service with default settings and wait until it is ready."""
    settings = {"RINGBACK_CALLBACK_SECRETS": SECRETS, "RINGBACK_LOG_LEVEL": "DEBUG"}
    directory = tmp_path_factory.mktemp("service")
    with running(directory, shared_amqp_url, settings) as running_service:
        asyncio.run(running_service.ready())
        yield running_service


@pytest.fixture
async def publisher(service: Service, shared_amqp_url: str) -> AsyncIterator[BrokerClient]:
    """Yield a client that uses only AMQP, on the virtual host of the service."""
    assert not service.exited(), service.output
    async with broker_client(shared_amqp_url) as client:
        yield client


@pytest.fixture
async def receiver() -> AsyncIterator[Sandbox]:
    """Start a sandbox for one test."""
    async with running_sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def gateway_service(
    shared_amqp_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Start a gateway with default settings."""
    with gateway(tmp_path_factory.mktemp("gateway"), shared_amqp_url) as service:
        yield service


@pytest.fixture
async def scheduler(shared_amqp_url: str) -> AsyncIterator[FakeScheduler]:
    """Run a fake scheduler behind the gateway."""
    async with fake_scheduler(shared_amqp_url) as fake:
        yield fake


@pytest.fixture
async def call(gateway_service: Service, scheduler: FakeScheduler) -> AsyncIterator[Caller]:
    """Yield a caller of the gateway in front of the fake scheduler."""
    assert scheduler  # without one the gateway is not ready
    async with calling(await base_url(gateway_service)) as caller:
        await until(gateway_service.is_ready)
        yield caller


@pytest.fixture(scope="module")
def start_system(
    shared_amqp_url: str, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> StartSystem:
    """Return a function that starts services, with a gateway, and waits until they are ready."""

    @contextmanager
    def start(*names: str, **settings: str) -> Iterator[System]:
        directory = tmp_path_factory.mktemp("system")
        with (
            fresh_database(database_url) as url,
            system(directory, shared_amqp_url, url, *names, **settings) as started,
        ):
            asyncio.run(started.ready())
            yield started

    return start


@pytest.fixture
async def process(database_url: str) -> AsyncIterator[CampaignProcess]:
    """Run the requests and the worker of mailings on an empty database."""
    async with running_campaigns(database_url) as running:
        yield running


@pytest.fixture
async def mailings(database_url: str) -> AsyncIterator[Mailings]:
    """Run the parts of mailings that expand, on an empty database."""
    async with running_mailings(await empty_mailings(database_url), {}) as running:
        yield running


@pytest.fixture
async def setup(database_url: str) -> AsyncIterator[tuple[Mailings, UserLists]]:
    """Run the parts of mailings on an empty database, with a server of user lists."""
    url = await empty_mailings(database_url)
    async with user_lists() as lists, running_mailings(url, {"auth": lists.url}) as mailings:
        yield mailings, lists
