"""Declares the topology, and reports queues that exist with other arguments."""

import asyncio
from collections.abc import Sequence
from typing import Final

from aiormq.abc import AbstractConnection
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from shared.errors import RingbackError
from shared.topology import JOURNAL_FACTS, Exchange, Queue, Topology

# Seconds. A queue may wait for the election of its leader. After that a new connection may help.
DECLARE_TIMEOUT: Final = 30.0


_DELETE: Final = "delete it once it is empty, or use another virtual host"
_ADVICE: Final = {
    JOURNAL_FACTS: "set RINGBACK_JOURNAL_BACKLOG to its old value, and change the size by a policy"
}


class TopologyMismatchError(RingbackError):
    """Exchanges or queues on the broker differ from the topology. `faults` describes each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


async def declare(connection: AbstractConnection, topology: Topology) -> None:
    """Declare everything that is missing.

    Raises:
        TopologyMismatchError: something exists with other properties, or the user lacks the
            permission to declare it. Everything else is declared.
        ConnectionError: the node of a queue is down.
        TimeoutError: the broker has not finished within 30 s.
    """
    async with asyncio.timeout(DECLARE_TIMEOUT):
        faults = await _compare(connection, topology, passive=False)
        if faults:
            raise TopologyMismatchError(faults)
        channel = await connection.channel(publisher_confirms=False)
        for binding in topology.bindings:
            await channel.queue_bind(binding.queue, binding.exchange, binding.routing_key)
        await channel.close()


async def check(connection: AbstractConnection, topology: Topology) -> list[str]:
    """Return a sentence for each missing or different exchange or queue, and declare nothing.

    The arguments of a queue can only be compared by declaring it. So existing queues are declared
    again, which changes nothing, and missing ones are not.

    Raises:
        ConnectionError: the node of a queue is down.
    """
    missing = await _compare(connection, topology, passive=True)
    absent = {fault.split("'")[1] for fault in missing}
    present = Topology(
        tuple(e for e in topology.exchanges if e.name not in absent),
        tuple(q for q in topology.queues if q.name not in absent),
        (),
    )
    return missing + await _compare(connection, present, passive=False)


async def _compare(
    connection: AbstractConnection, topology: Topology, *, passive: bool
) -> list[str]:
    faults: list[str] = []
    channel = await connection.channel(publisher_confirms=False)
    items: tuple[Exchange | Queue, ...] = (*topology.exchanges, *topology.queues)
    for item in items:
        kind = "queue" if isinstance(item, Queue) else "exchange"
        try:
            if isinstance(item, Exchange):
                await channel.exchange_declare(
                    item.name, exchange_type=item.type, durable=True, passive=passive
                )
            else:
                await channel.queue_declare(
                    item.name, durable=True, arguments=dict(item.arguments), passive=passive
                )
        except ChannelNotFoundEntity as error:
            if not passive or "down or inaccessible" in str(error):
                raise ConnectionResetError(
                    f"{kind} '{item.name}' is unavailable: {error}"
                ) from None
            faults.append(f"{kind} '{item.name}' is missing: run `ringback topology declare`")
        except ChannelPreconditionFailed as error:
            faults.append(
                f"{kind} '{item.name}' exists with other properties ({_difference(error)}):"
                f" {_ADVICE.get(item.name, _DELETE)}"
            )
        except ChannelAccessRefused as error:
            faults.append(f"{kind} '{item.name}' cannot be declared: {_difference(error)}")
        else:
            continue
        channel = await connection.channel(publisher_confirms=False)  # the broker closed it
    await channel.close()
    return faults


def _difference(error: Exception) -> str:
    """Return the broker's reason, such as `inequivalent arg 'x-message-ttl' …`."""
    return str(error).removeprefix("PRECONDITION_FAILED - ").removeprefix("ACCESS_REFUSED - ")
