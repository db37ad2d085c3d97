"""Declares the topology, and says what is in the way when a queue exists with other arguments."""

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
from shared.topology import Exchange, Queue, Topology

# Seconds. A queue may wait for its leader's election; one that stays silent is the broker's fault,
# which a new connection may mend and waiting does not.
DECLARE_TIMEOUT: Final = 30.0


class TopologyMismatchError(RingbackError):
    """The broker holds exchanges or queues other than the table's; `faults` names each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


async def declare(connection: AbstractConnection, topology: Topology) -> None:
    """Declare everything that is not there yet.

    Raises:
        TopologyMismatchError: something exists with other properties, or may not be declared.
            Everything else is declared.
        TimeoutError: the broker has not answered for all of it within 30 s.
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
    """What is missing or different on the broker, a sentence each; nothing is declared.

    A queue's arguments can only be compared by declaring it, so what is there is declared again,
    which changes nothing, and what is not there is left alone.
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
        except ChannelNotFoundEntity:
            faults.append(f"{kind} '{item.name}' is missing: run `ringback topology declare`")
        except ChannelPreconditionFailed as error:
            faults.append(
                f"{kind} '{item.name}' exists with other properties ({_difference(error)}): "
                "delete it when it is empty, or use another virtual host"
            )
        except ChannelAccessRefused as error:
            faults.append(f"{kind} '{item.name}' may not be declared: {_difference(error)}")
        else:
            continue
        channel = await connection.channel(publisher_confirms=False)  # the broker closed it
    await channel.close()
    return faults


def _difference(error: Exception) -> str:
    """The telling part of the broker's sentence, such as `inequivalent arg 'x-message-ttl' …`."""
    return str(error).removeprefix("PRECONDITION_FAILED - ").removeprefix("ACCESS_REFUSED - ")
