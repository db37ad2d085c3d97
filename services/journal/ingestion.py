"""Reads the stream of facts and stores them, in one process at a time.

The position in the stream is stored in the transaction that stores the facts. So each message is
stored exactly once, whichever process is killed. The broker's acks only bound what is in memory.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal

import asyncpg
from pydantic import BaseModel

from services.journal import metrics
from services.journal.parsing import Parsed, parse
from services.journal.store import Missed, Position, Store
from shared.amqp.connection import BrokerConnection, keep_connected, run_until_first_ends
from shared.amqp.declare import declare
from shared.amqp.stream import Stream, StreamMessage, last_message, open_stream
from shared.errors import InfrastructureError
from shared.postgres.exclusive import run_exclusively
from shared.process.health import Health
from shared.topology import JOURNAL_FACTS, Topology

logger = logging.getLogger(__name__)

PART: Final = "stream"
LOCK: Final = "ringback journal ingestion"
# Messages in memory. One has at most 1 MiB, usually 100 facts of 600 bytes.
PREFETCH: Final = 100
# Messages in a batch, so that others arrive while it is stored.
MAX_MESSAGES: Final = PREFETCH // 2
# Seconds for which a batch collects. With few facts, it bounds the transactions per second.
COLLECT_INTERVAL: Final = 0.2
# Seconds until a failed session is repeated.
RETRY_DELAY: Final = 1.0
# Seconds between two checks of how far the journal is behind.
CHECK_INTERVAL: Final = 5.0
# Offsets that RabbitMQ uses for its own records. 3.10.8 used one at the start of each segment. What
# retention drops is a whole segment, with more messages than this.
MAX_HOLE: Final = 3
# Message ids in memory, to recognise a message that was published twice because its first confirm
# was lost. The second one follows within seconds.
MAX_RECENT: Final = 10_000
# Errors over a value that PostgreSQL cannot store. A repeat would fail as well.
_REFUSED: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,  # a text is too long for an index
    ValueError,
    ArithmeticError,  # a number or a time is out of range
)


@dataclass(slots=True)
class _Batch:
    """Parsed messages. `tag` is that of the last delivery."""

    messages: list[tuple[StreamMessage, Parsed]] = field(default_factory=list)
    tag: int = 0
    missed: list[Missed] = field(default_factory=list)

    @property
    def facts(self) -> list[BaseModel]:
        """Return the facts of all messages."""
        return [fact for _, parsed in self.messages for fact in parsed.facts]


@dataclass(slots=True)
class _Reading:
    """The progress of one session.

    stored: the last message in the database. read: the last one that was delivered.
    verified: whether the stream is the one that `stored` is about.
    received: the number of deliveries.
    """

    stored: Position
    read: Position
    verified: bool
    received: int = 0
    waiting_since: float = 0.0  # time of the first message that is not stored, 0 if none is here

    def lag(self, last: StreamMessage, now: float) -> float:
        """Return for how many seconds the oldest message that is not stored has waited.

        last: the last message of the stream. now: in epoch seconds.
        """
        if last.offset <= self.stored.offset:
            return 0.0
        since = self.waiting_since or float(last.properties.timestamp or now)
        return max(now - since, 0.0)

    def advance(self, message: StreamMessage) -> Missed | None:
        """Move on to a message, and return what the stream has dropped before it."""
        expected = self.read.offset + 1
        self.read = Position(message.offset, message.properties.message_id)
        found = Missed(expected, message.offset - 1)
        return found if found.messages > MAX_HOLE else None


class _StreamReplacedError(ConnectionResetError):
    """The stream was deleted, or has lost its end: the position belongs to another one."""


class Ingestion:
    """Stores the facts of the stream. `batch` is the number of facts after which one is stored."""

    def __init__(  # noqa: PLR0913 - the composition root passes each collaborator by name
        self,
        store: Store,
        *,
        amqp_url: str,
        database_url: str,
        name: str,
        topology: Topology,
        health: Health,
        batch: int,
    ) -> None:
        self._store = store
        self._keep_connected = partial(
            keep_connected, amqp_url, name=name, part=PART, health=health
        )
        self._database_url = database_url
        self._topology = topology
        self._health = health
        self._batch = batch
        self._recent: OrderedDict[str, int] = OrderedDict()  # offsets by message id
        health.expect(PART)

    async def run(self) -> None:
        """Store facts while no other process does, until cancelled.

        Raises:
            TopologyMismatchError: the stream on the broker differs from the topology.
        """
        work = partial(self._keep_connected, session=self._serve)
        while True:
            try:
                await run_exclusively(self._database_url, LOCK, work, waiting=self._wait)
            except InfrastructureError as error:
                self._health.down(PART, str(error))
            await asyncio.sleep(RETRY_DELAY)

    def _wait(self) -> None:
        """Be ready, because another process reads the stream, and reports how far it is behind."""
        metrics.BEHIND.set(0)
        metrics.LAG.set(0)
        self._health.up(PART)

    async def _serve(self, broker: BrokerConnection) -> None:
        await declare(broker.connection, self._topology)
        position = await self._store.position()
        # A database that has lost commits gets their messages again.
        self._recent = OrderedDict(
            (id_, offset) for id_, offset in self._recent.items() if offset <= position.offset
        )
        reading = _Reading(position, position, verified=position.offset < 0)
        received: asyncio.Queue[StreamMessage] = asyncio.Queue()
        stream = await open_stream(broker, JOURNAL_FACTS)
        # The last stored message is read again, which shows that it is still the same stream.
        start: int | Literal["first"] = position.offset if position.offset >= 0 else "first"
        await stream.start(start, received.put_nowait, prefetch=PREFETCH)
        self._health.up(PART)
        await run_until_first_ends(
            stream.run(),
            self._store_all(stream, received, reading),
            self._watch(broker, received, reading),
        )

    async def _store_all(
        self, stream: Stream, received: asyncio.Queue[StreamMessage], reading: _Reading
    ) -> None:
        while True:
            try:
                batch = await self._collect(received, reading)
            except _StreamReplacedError:
                await self._restart(reading)
                raise
            if reading.read != reading.stored:
                await self._store_batch(batch, reading)
            stream.acknowledge(batch.tag)

    async def _collect(self, received: asyncio.Queue[StreamMessage], reading: _Reading) -> _Batch:
        """Return the messages that arrive within COLLECT_INTERVAL, as far as they fit."""
        batch = _Batch()
        facts = count = 0
        message = await received.get()
        reading.waiting_since = float(message.properties.timestamp or 0)
        end = asyncio.get_running_loop().time() + COLLECT_INTERVAL
        while True:
            count += 1
            batch.tag = message.tag
            if self._is_new(message, reading, batch):
                parsed = parse(message.properties, message.body)
                batch.messages.append((message, parsed))
                facts += len(parsed.facts)
            if facts >= self._batch or count >= MAX_MESSAGES:
                return batch
            try:
                async with asyncio.timeout_at(end):
                    message = await received.get()
            except TimeoutError:
                return batch

    def _is_new(self, message: StreamMessage, reading: _Reading, batch: _Batch) -> bool:
        """Return whether a message is to be stored, and record what was dropped before it.

        Raises:
            _StreamReplacedError: the last stored message is another one now.
        """
        reading.received += 1
        if not reading.verified:
            stored = reading.stored
            if message.offset == stored.offset:
                if message.properties.message_id != stored.message_id:
                    raise _StreamReplacedError("the stream was replaced")
                reading.verified = True
                return False
            reading.verified = message.offset > stored.offset  # it was dropped
        if message.offset <= reading.read.offset:
            return False
        if (missed := reading.advance(message)) is not None:
            batch.missed.append(missed)
        identifier = message.properties.message_id
        known = identifier is not None and (
            identifier in self._recent
            or any(identifier == each.properties.message_id for each, _ in batch.messages)
        )
        if known:
            metrics.REPEATED.inc()
        return not known

    async def _store_batch(self, batch: _Batch, reading: _Reading) -> None:
        """Store a batch. If PostgreSQL refuses it, store each message alone."""
        started = time.monotonic()
        facts, refused = batch.facts, 0
        try:
            expired = await self._store.add(facts, reading.stored, reading.read, batch.missed)
        except _REFUSED as error:
            logger.error(  # noqa: TRY400 - the text of the error may quote a fact
                "facts refused by the database",
                extra={"facts": len(facts), "error": type(error).__name__},
            )
            expired, refused = await self._store_each(batch, reading)
        metrics.BATCH.observe(time.monotonic() - started)
        metrics.STORED.inc(len(facts) - expired - refused)
        metrics.EXPIRED.inc(expired)
        metrics.INVALID.inc(refused)
        self._count(batch)
        reading.stored = reading.read
        reading.waiting_since = 0.0

    async def _store_each(self, batch: _Batch, reading: _Reading) -> tuple[int, int]:
        """Store each message alone, and leave out the facts that cannot be stored.

        Return how many facts were too old, and how many were left out.
        """
        missed: Sequence[Missed] = batch.missed
        expired = refused = 0
        for message, parsed in batch.messages:
            position = Position(message.offset, message.properties.message_id)
            facts = await self._storable(parsed.facts)
            expired += await self._store.add(facts, reading.stored, position, missed)
            refused += len(parsed.facts) - len(facts)
            reading.stored, missed = position, ()
        if reading.stored != reading.read:
            await self._store.add((), reading.stored, reading.read, missed)
        return expired, refused

    async def _storable(self, facts: Sequence[BaseModel]) -> Sequence[BaseModel]:
        """Return the facts that PostgreSQL accepts. Those that it refuses are found by halves."""
        try:
            await self._store.check(facts)
        except _REFUSED:
            middle = len(facts) // 2
            if not middle:
                return ()
            first, second = facts[:middle], facts[middle:]
            return [*await self._storable(first), *await self._storable(second)]
        return facts

    def _count(self, batch: _Batch) -> None:
        for message, parsed in batch.messages:
            metrics.UNKNOWN.inc(parsed.unknown)
            metrics.INVALID.inc(parsed.invalid)
            if message.properties.message_id is not None:
                self._recent[message.properties.message_id] = message.offset
        while len(self._recent) > MAX_RECENT:
            self._recent.popitem(last=False)
        for missed in batch.missed:
            metrics.MISSED.inc(missed.messages)
            logger.error(
                "facts missed: the backlog was exceeded", extra={"messages": missed.messages}
            )

    async def _restart(self, reading: _Reading) -> None:
        logger.error("stream replaced, read from its beginning")
        await self._store.restart(reading.stored)

    async def _watch(
        self,
        broker: BrokerConnection,
        received: asyncio.Queue[StreamMessage],
        reading: _Reading,
    ) -> None:
        """Report how far the journal is behind, and end a session that receives nothing.

        Raises:
            ConnectionResetError: messages are ready but not delivered, or the stream was replaced.
        """
        idle_since = -1
        while True:
            await asyncio.sleep(CHECK_INTERVAL)
            last = await last_message(broker, JOURNAL_FACTS)
            if last is None:  # empty, or the broker is slow
                continue
            metrics.BEHIND.set(max(last.offset - reading.stored.offset, 0))
            lag = reading.lag(last, time.time())
            metrics.LAG.set(lag)
            await self._store.report_lag(lag)
            idle = reading.received == idle_since and received.empty()
            idle_since = reading.received
            if not idle:
                continue
            if not reading.verified and last.offset < reading.stored.offset:
                await self._restart(reading)
                raise _StreamReplacedError("the stream was replaced")
            if last.offset > reading.read.offset:
                raise ConnectionResetError("messages are ready, but none is delivered")
