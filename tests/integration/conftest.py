"""One callback service per module, for tests that do not need their own."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.fakes.broker_client import BrokerClient, broker_client
from tests.fakes.sandbox import Sandbox, running_sandbox
from tests.fakes.service import Service, running
from tests.fakes.virtual_host import virtual_host

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
