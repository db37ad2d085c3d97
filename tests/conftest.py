"""Private servers of the tests: a RabbitMQ and a PostgreSQL, started on first use.

`RINGBACK_AMQP_URL` and `RINGBACK_DATABASE_URL` replace them with your own servers, except in tests
that kill or suspend a server.
"""

import asyncio
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, settings

from deploy.local import daemon, stack
from deploy.local.broker import Broker
from deploy.local.cluster import Cluster
from deploy.local.database import Database
from deploy.local.install import Installation, rabbitmq
from deploy.local.rabbitmq4 import rabbitmq4
from deploy.local.watchdog import throwaway
from tests.fakes.virtual_host import virtual_host

# Time limits would measure the machine instead of the code.
settings.register_profile(
    "ringback", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("ringback")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rabbitmq4",
        action="store_true",
        help="test against RabbitMQ 4 from Debian 13 in a chroot (needs root and debootstrap)",
    )


def pytest_collection_finish() -> None:
    """Keep modules and tests out of garbage collections, which would use up a time limit."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_local_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the data, logs and keys of a `ringback up` in this checkout from all tests."""
    directory = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RINGBACK_LOCAL_DIRECTORY", str(directory))
        patch.setattr(daemon, "LOCAL_DIRECTORY", directory)
        patch.setattr(stack, "DIRECTORY", directory / "stack")
        yield


@pytest.fixture(scope="session")
def stack_directory() -> Iterator[Path]:
    """Return the directory of this session's servers, which end with it, even after a kill."""
    with throwaway("test") as directory:
        yield directory


@pytest.fixture(scope="session")
def installation(pytestconfig: pytest.Config, stack_directory: Path) -> Installation:
    """Return the RabbitMQ to test against. It is installed if missing, with visible output."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        return rabbitmq4(stack_directory) if pytestconfig.getoption("rabbitmq4") else rabbitmq()


@pytest.fixture(scope="session")
def broker(stack_directory: Path, installation: Installation) -> Iterator[Broker]:
    """Start the node that all tests of the session share. Do not stop it or change its limits."""
    node = Broker(stack_directory / "broker", installation)
    node.start()
    yield node
    node.kill()  # its data is deleted, so a clean stop is not needed


@pytest.fixture
def amqp_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URL of a fresh virtual host, or RINGBACK_AMQP_URL if it is set."""
    with virtual_host(request) as url:
        yield url


@pytest.fixture(scope="session")
def _spare_broker(stack_directory: Path, installation: Installation) -> Iterator[Broker]:
    node = Broker(stack_directory / "own-broker", installation)
    yield node
    node.kill()


@pytest.fixture
def own_broker(_spare_broker: Broker) -> Broker:
    """Return a running, empty node that only this test uses: it may kill, suspend and restart it.

    The next test gets it running again, with an empty virtual host of another name: RabbitMQ can
    lose a queue at a kill if one with the same name was deleted before. A test that changes limits
    with `ctl` must restore them.
    """
    _spare_broker.resume()
    _spare_broker.start()
    if _spare_broker.vhost != "/":
        _spare_broker.delete_vhost(_spare_broker.vhost)
    _spare_broker.vhost = f"own-{uuid4().hex[:12]}"
    _spare_broker.add_vhost(_spare_broker.vhost)
    return _spare_broker


@pytest.fixture(scope="session")
def _shared_cluster(stack_directory: Path, installation: Installation) -> Iterator[Cluster]:
    cluster = Cluster(stack_directory / "cluster", installation)
    yield cluster
    cluster.kill()


@pytest.fixture
def cluster(_shared_cluster: Cluster) -> Cluster:
    """Return three running nodes that only this test uses: it may kill, suspend and isolate them.

    The next test gets them running again, with an empty virtual host of another name.
    """
    for node in _shared_cluster.nodes:
        node.resume()
    _shared_cluster.start()
    _shared_cluster.use_vhost(f"own-{uuid4().hex[:12]}")
    return _shared_cluster


@pytest.fixture(scope="session")
def database(stack_directory: Path) -> Iterator[Database]:
    """Start the PostgreSQL server that all tests of the session share."""
    server = Database(stack_directory / "database", durable=False)
    server.start()
    yield server
    server.stop(immediate=True)  # its data is deleted


@pytest.fixture(scope="session")
def _spare_database(stack_directory: Path) -> Iterator[Database]:
    server = Database(stack_directory / "own-database", durable=False)
    yield server
    server.stop(immediate=True)


@pytest.fixture
def own_database(_spare_database: Database) -> Iterator[Database]:
    """Return a running server that only this test uses: it may stop and restart it.

    Its database is recreated afterwards. A test that suspends a backend must resume it.
    """
    _spare_database.start()
    yield _spare_database
    _spare_database.start()
    _spare_database.drop_database("ringback")
    _spare_database.create_database("ringback")


@pytest.fixture(scope="session")
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URL of a database that is created for this session."""
    name = f"test_{uuid4().hex[:12]}"
    if given := os.environ.get("RINGBACK_DATABASE_URL"):
        asyncio.run(_execute(given, f'CREATE DATABASE "{name}"'))
        yield urlsplit(given)._replace(path=f"/{name}").geturl()
        asyncio.run(_execute(given, f'DROP DATABASE "{name}" WITH (FORCE)'))
        return
    server: Database = request.getfixturevalue("database")
    yield server.create_database(name)
    server.drop_database(name)


async def _execute(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
