"""A cluster of three nodes loses one: nothing is lost. `make chaos` runs the slow tests."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pamqp.common import FieldTable

from deploy.local.broker import Broker
from deploy.local.cluster import Cluster
from shared.amqp.connection import connect
from tests.fakes.alarms import memory_alarm
from tests.fakes.broker_client import broker_client
from tests.fakes.replicas import Replicas, replicas
from tests.fakes.sandbox import running_sandbox
from tests.fakes.steady_load import SteadyLoad, steady_load
from tests.fakes.system import fresh_database
from tests.fakes.waiting import until

SERVICES = ("callback", "scheduler", "ingestion", "mailings", "delivery")
KINDS = ("callback", "schedule", "event", "posting")


@pytest.fixture
def empty_database(database_url: str) -> Iterator[str]:
    """Return the URL of a database for one test."""
    with fresh_database(database_url) as url:
        yield url


async def recorded(database_url: str, callbacks: Iterable[str]) -> bool:
    """Return whether the journal has an entry of each of these deliveries."""
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch(
            "SELECT DISTINCT callback_id FROM journal.entries WHERE outcome = 'delivered'"
        )
    finally:
        await connection.close()
    return set(callbacks) <= {row["callback_id"] for row in rows}


@pytest.mark.slow
async def test_n11_row_5_and_finding_d2_a_killed_leader_interrupts_callbacks_for_10_seconds_at_most(
    cluster: Cluster, empty_database: str, tmp_path: Path
) -> None:
    names = ("callback", "scheduler", "journal")
    async with (
        running_sandbox() as sandbox,
        replicas(tmp_path, cluster.url, empty_database, sandbox, *names) as services,
        steady_load(cluster.url, services.gateways, sandbox, "callback", "schedule") as load,
    ):
        ledger = load.ledger
        await until(lambda: len(ledger.arrivals) >= 30)
        leader = await asyncio.to_thread(cluster.leader, "callbacks")
        await asyncio.to_thread(leader.kill)
        before = len(ledger.sent)
        await until(lambda: len(ledger.sent) >= before + 150)
        await load.stop()
        await load.arrived(60)
        result = ledger.result(0)
        await services.ready()
        # N6: the stream of facts had a member on the killed node, too.
        await until(lambda: recorded(empty_database, ledger.arrivals), 60)
    assert not result.lost
    assert result.early == 0
    assert result.interruption <= 10
    assert not services.bugs()


# Messages that are sent while an observer's queue has no majority. That takes more than a minute,
# after which a channel is opened again.
MANY = 1000
DROPPED = "ringback_fact_messages_dropped_total"


@pytest.mark.chaos
async def test_n11_and_finding_b2_an_observers_queue_without_a_majority_affects_nobody_else(
    cluster: Cluster, empty_database: str, tmp_path: Path
) -> None:
    names = ("callback", "scheduler")
    async with (
        running_sandbox() as sandbox,
        replicas(tmp_path, cluster.url, empty_database, sandbox, *names) as services,
        steady_load(cluster.url, services.gateways, sandbox, "callback", "schedule") as load,
    ):
        ledger = load.ledger
        await until(lambda: len(ledger.arrivals) >= 30)
        leader = await asyncio.to_thread(cluster.leader, "callbacks")
        other = next(node for node in cluster.nodes if node is not leader)
        started = time.time()
        async with broker_client(leader.url) as observer:
            await bind_queue_of_one_member(other)
            await asyncio.to_thread(other.kill)
            before = len(ledger.sent)
            await until(lambda: len(ledger.sent) >= before + MANY, 180)
            await load.stop()
            await load.arrived(60)
            result = ledger.result(started)
            sent = {message for message, each in ledger.sent.items() if each.due >= started}
            await until(lambda: sent <= reported(observer.facts))
        await services.ready()
        missed = [await each.metric(DROPPED) for each in services]
        replaced = [len(each.logged("facts is not ready")) for each in services]
    print(f"an observer without a majority: {result}")  # noqa: T201 - for docs/guarantees.md
    assert sum(missed) > 0, "the queue has a majority"
    assert max(replaced) <= 5, "a channel is replaced too often"
    assert not result.lost
    assert result.early == 0
    assert result.interruption <= 10
    assert not services.bugs()


async def bind_queue_of_one_member(node: Broker) -> None:
    """Bind a queue for all facts, which has no majority without this node."""
    arguments: FieldTable = {"x-queue-type": "quorum", "x-quorum-initial-group-size": 1}
    async with connect(node.url, name="observer") as broker:
        channel = await broker.connection.channel()
        await channel.queue_declare("observer", durable=True, arguments=arguments)
        await channel.queue_bind("observer", "outcomes", "#")


def reported(facts: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the ids of the callbacks that were delivered, and of those that were notified."""
    return {
        fact["schedule_id"] if fact["type"] == "schedule.notified" else fact["callback_id"]
        for fact in facts
        if fact["type"] in ("callback.delivered", "schedule.notified")
    }


# Seconds of each fault. Row 4 of the fault table names 80 for a partition: RabbitMQ detects it only
# after a minute.
FAULTS: dict[str, tuple[float, Callable[[Cluster, Broker], AbstractContextManager[object]]]] = {}


def fault(seconds: float) -> Callable[..., None]:
    """Register a fault of a node, which is the leader of `callbacks`."""

    def register(inject: Callable[[Cluster, Broker], Iterator[None]]) -> None:
        FAULTS[inject.__name__] = (seconds, contextmanager(inject))

    return register


@fault(15)
def no_fault(_: Cluster, __: Broker) -> Iterator[None]:
    yield


@fault(15)
def node_stopped(_: Cluster, node: Broker) -> Iterator[None]:
    node.stop()
    yield
    node.start()


@fault(15)
def node_killed(_: Cluster, node: Broker) -> Iterator[None]:
    node.kill()
    yield
    node.start()


@fault(40)
def node_suspended(_: Cluster, node: Broker) -> Iterator[None]:
    node.suspend()
    yield
    node.resume()


@fault(80)
def node_isolated(cluster: Cluster, node: Broker) -> Iterator[None]:
    with cluster.isolated(node):
        yield


@fault(15)
def memory_alarm_of_a_node(_: Cluster, node: Broker) -> Iterator[None]:
    with memory_alarm(node):
        yield


@pytest.mark.chaos
@pytest.mark.parametrize("name", FAULTS)
async def test_n11_rows_4_and_5_no_message_is_lost_in_a_cluster(
    cluster: Cluster,
    empty_database: str,
    tmp_path: Path,
    name: str,
    record_property: Callable[[str, object], None],
) -> None:
    seconds, inject = FAULTS[name]
    async with under_load(cluster, empty_database, tmp_path) as (services, load):
        await asyncio.sleep(10)  # undisturbed
        started = time.time()
        leader = await asyncio.to_thread(cluster.leader, "callbacks")
        with ExitStack() as stack:
            context = inject(cluster, leader)
            await asyncio.to_thread(stack.enter_context, context)
            await asyncio.sleep(seconds)  # the length of the fault
            await asyncio.to_thread(stack.close)
        await asyncio.to_thread(cluster.nodes[0].ctl, "await_online_nodes", "3")
        await services.ready()
        await asyncio.sleep(10)  # undisturbed again
        await load.stop()
        await load.arrived(90)
        result = load.ledger.result(started)
    print(f"{name} {seconds:g} s: {result}")  # noqa: T201 - docs/chaos.md shows it
    record_property(name, str(result))
    assert not result.lost, result.lost
    assert result.early == 0
    assert not services.bugs()


@asynccontextmanager
async def under_load(
    cluster: Cluster, database_url: str, directory: Path
) -> AsyncIterator[tuple[Replicas, SteadyLoad]]:
    """Run two processes of each service under a load of everything."""
    async with (
        running_sandbox() as sandbox,
        replicas(directory, cluster.url, database_url, sandbox, *SERVICES) as services,
        steady_load(cluster.url, services.gateways, sandbox, *KINDS) as load,
    ):
        await until(lambda: {sent.kind for sent in load.ledger.sent.values()} == set(KINDS))
        yield services, load
