"""One node of three is lost: queues stay usable, and no process ends."""

import asyncio

import pytest

from deploy.local.cluster import Cluster
from shared.amqp.connection import CONNECTION_ERRORS, connect
from shared.amqp.declare import check, declare
from shared.topology import Queue, Topology, topology
from tests.fakes.waiting import until


@pytest.mark.chaos
async def test_finding_b3_all_queues_can_be_declared_without_a_node(cluster: Cluster) -> None:
    table = topology()
    async with connect(cluster.nodes[0].url, name="test") as broker:
        await declare(broker.connection, table)
    await asyncio.to_thread(cluster.nodes[0].kill)

    async def declared() -> bool:
        try:
            async with connect(cluster.url, name="test") as broker:
                await declare(broker.connection, table)
                return not await check(broker.connection, table)
        except CONNECTION_ERRORS:  # a queue has no leader yet
            return False

    await until(declared, 30)


@pytest.mark.chaos
async def test_finding_b3_a_queue_whose_node_is_down_is_not_reported_as_missing(
    cluster: Cluster,
) -> None:
    """As with `queue_type = "classic"`."""
    table = Topology((), (Queue("of-one-node", {"x-queue-type": "classic"}),), ())
    async with connect(cluster.nodes[1].url, name="test") as broker:
        await declare(broker.connection, table)
    await asyncio.to_thread(cluster.nodes[1].kill)
    async with connect(cluster.url, name="test") as broker:
        with pytest.raises(CONNECTION_ERRORS, match="down or inaccessible"):
            await declare(broker.connection, table)
    async with connect(cluster.url, name="test") as broker:
        with pytest.raises(CONNECTION_ERRORS, match="down or inaccessible"):
            await check(broker.connection, table)
