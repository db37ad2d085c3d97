"""All services in front of one broker and database, for the tests of this directory.

They are started once, because each costs a second of CPU. They end with the last of these tests,
because each that waits also costs something.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.fakes.broker_users import broker_users
from tests.fakes.sending_pages import Desk, desk
from tests.fakes.system import System, fresh_database, system
from tests.fakes.virtual_host import virtual_host

SERVICES = (
    *("scheduler", "callback", "ingestion", "mailings", "delivery", "subscriptions", "journal"),
)
SETTINGS = {"RINGBACK_JOURNAL_BODIES": "all", "RINGBACK_OPERATORS": "operator, second"}


@pytest.fixture(scope="package")
def shared_amqp_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URL of their virtual host."""
    with virtual_host(request) as url:
        yield url


@pytest.fixture(scope="package")
def shared_database_url(database_url: str) -> Iterator[str]:
    """Return the URL of their database."""
    with fresh_database(database_url) as url:
        yield url


@pytest.fixture(scope="package")
def own_amqp_urls(request: pytest.FixtureRequest, shared_amqp_url: str) -> Iterator[dict[str, str]]:
    """Return the URL of each service, with a user that has only the documented permissions.

    A broker that RINGBACK_AMQP_URL names has one user.
    """
    if "RINGBACK_AMQP_URL" in os.environ:
        yield dict.fromkeys((*SERVICES, "gateway", "console"), shared_amqp_url)
        return
    with broker_users(request.getfixturevalue("broker"), shared_amqp_url) as urls:
        yield urls


@pytest.fixture(scope="package")
def services(
    own_amqp_urls: dict[str, str],
    shared_database_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[System]:
    """Start a gateway and all services, and wait until they are ready."""
    directory = tmp_path_factory.mktemp("system")
    with system(directory, own_amqp_urls, shared_database_url, *SERVICES, **SETTINGS) as started:
        asyncio.run(started.ready())
        yield started
        # The broker's words for a missing permission.
        refused = [name for name, each in started.items() if "refused for user" in each.output]
    assert refused == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pages(
    services: System, shared_database_url: str, own_amqp_urls: dict[str, str]
) -> AsyncIterator[Desk]:
    """Run a console for an operator and a viewer."""
    async with desk(services, shared_database_url, own_amqp_urls["console"]) as found:
        yield found


@pytest.fixture
def client(request: pytest.FixtureRequest) -> str:
    """Return a client that no other test uses."""
    return str(request.node.name)[:200]
