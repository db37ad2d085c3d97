"""Keeps the index of dead letters in line with their queues.

Letters that RabbitMQ itself has dead-lettered have no fact, a fact can be lost, and anybody can
delete messages. So the number of letters in each queue is compared with the index. A difference
that stays the same for a minute is not one of letters under way: the queue is read once.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from services.journal import metrics
from services.journal.dead.index import LetterIndex, LetterRow, row
from services.journal.jobs.store import Jobs
from shared.amqp.connection import BrokerConnection, keep_connected
from shared.amqp.dead_letters import DeadLetter, parse_dead_letter
from shared.amqp.declare import declare
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.queue_browser import QueueBrowser, browse_queue
from shared.clock import Clock
from shared.errors import InfrastructureError
from shared.postgres.exclusive import run_exclusively
from shared.process.health import Health
from shared.topology import WORK_QUEUES, Topology, dead_queue

logger = logging.getLogger(__name__)

PART: Final = "dead letters"
LOCK: Final = "ringback journal dead letters"
# Seconds between two comparisons.
CHECK_INTERVAL: Final = 10.0
# Seconds for which a difference stays the same before the queue is read.
PATIENCE: Final = 60.0
# Seconds until a failed session is repeated.
RETRY_DELAY: Final = 1.0
# Messages received ahead, which bounds the memory, and letters in one transaction.
PREFETCH: Final = 1000


@dataclass(frozen=True, slots=True)
class _Difference:
    """How many more letters a queue has than the index, and since when."""

    count: int
    since: float


class Reconciliation:
    """Compares the index with the queues, in one process at a time."""

    def __init__(  # noqa: PLR0913 - the composition root passes each collaborator by name
        self,
        index: LetterIndex,
        jobs: Jobs,
        *,
        amqp_url: str,
        database_url: str,
        name: str,
        topology: Topology,
        health: Health,
        clock: Clock,
    ) -> None:
        self._index = index
        self._jobs = jobs
        self._database_url = database_url
        self._topology = topology
        self._health = health
        self._clock = clock
        self._keep_connected = partial(
            keep_connected, amqp_url, name=name, part=PART, health=health
        )
        self._differences: dict[str, _Difference] = {}
        # Letters with the same id as another one of their queue. They are in the index once.
        self._repeated: dict[str, int] = {}
        health.expect(PART)

    async def run(self) -> None:
        """Compare while no other process does, until cancelled."""
        work = partial(self._keep_connected, session=self._serve)
        while True:
            try:
                await run_exclusively(
                    self._database_url, LOCK, work, waiting=partial(self._health.up, PART)
                )
            except InfrastructureError as error:
                logger.warning("Cannot compare dead letters: %s. Retrying.", error)
            await asyncio.sleep(RETRY_DELAY)

    async def _serve(self, broker: BrokerConnection) -> None:
        await declare(broker.connection, self._topology)
        self._health.up(PART)
        while True:
            for queue in await self.compare(broker):
                await self.read(broker, queue)
            await self._index.clean_up()
            await asyncio.sleep(CHECK_INTERVAL)

    async def compare(self, broker: BrokerConnection) -> list[str]:
        """Compare all queues, and return those to read."""
        busy, totals = await self._jobs.busy_queues(), await self._index.totals()
        channel = await broker.connection.channel(publisher_confirms=False)
        found = []
        for queue in (work.name for work in WORK_QUEUES):
            state = await channel.queue_declare(dead_queue(queue), passive=True)
            count = (state.message_count or 0) - self._repeated.get(queue, 0)
            difference = count - totals.get(queue, 0)
            # A consumer holds letters, which are not counted.
            if not difference or queue in busy or state.consumer_count:
                self._differences.pop(queue, None)
            elif self._stays(queue, difference):
                found.append(queue)
        await channel.close()
        return found

    def _stays(self, queue: str, count: int) -> bool:
        """Return whether a difference has been the same for PATIENCE seconds."""
        now = self._clock.monotonic()
        known = self._differences.get(queue)
        if known is None or known.count != count:
            known = self._differences[queue] = _Difference(count, now)
        return now - known.since >= PATIENCE

    async def read(self, broker: BrokerConnection, queue: str) -> None:
        """Read a dead-letter queue once, and correct the index."""
        self._differences.pop(queue, None)
        async with self._index.transaction() as connection:
            last = await self._index.last(connection, queue)
        found: set[int] = set()  # hashes: a million take 80 MB
        count = 0
        async with browse_queue(broker, dead_queue(queue), prefetch=PREFETCH) as browser:
            async for chunk in _chunks(browser):
                if queue in await self._jobs.busy_queues():
                    return  # a job was started meanwhile: it needs the letters that are held here
                count += await self._add(browser, queue, chunk, found)
            if not browser.is_complete:
                return  # another consumer holds the others
            if queue in await self._jobs.busy_queues():
                return  # the job may hold some
            removed = await self._remove_missing(queue, last, found)
        self._repeated[queue] = count - len(found)
        metrics.REINDEXED.inc()
        logger.info(
            "dead letters read again",
            extra={"queue": queue, "messages": count, "removed": removed},
        )

    async def _add(
        self,
        browser: QueueBrowser,
        queue: str,
        chunk: Sequence[tuple[Delivery, DeadLetter]],
        found: set[int],
    ) -> int:
        """Add letters to the index, and return how many there are.

        A letter that was moved before is removed from its queue: only its ack was lost. An id that
        was derived from its content is not unique, so that letter counts as a new one.
        """
        moved = await self._index.moved(queue, [letter.letter_id for _, letter in chunk])
        rows: list[LetterRow] = []
        unsure: list[str] = []
        for delivery, letter in chunk:
            id_ = letter.letter_id
            if id_ in moved and letter.own_id is not None:
                browser.remove(delivery)
                continue
            if id_ in moved:
                unsure.append(id_)
            found.add(hash(id_))
            rows.append(_row(queue, letter))
        async with self._index.transaction() as connection:
            await self._index.forget_moved(connection, queue, unsure)
            await self._index.add(connection, rows)
        return len(rows)

    async def _remove_missing(self, queue: str, last: int, found: set[int]) -> int:
        """Remove letters up to a number that are not in their queue. Return how many."""
        removed = after = 0
        while True:
            letters = await self._index.after(queue, after, last, PREFETCH)
            if not letters:
                return removed
            after = letters[-1][0]
            missing = [id_ for _, id_ in letters if hash(id_) not in found]
            if missing:
                async with self._index.transaction() as connection:
                    removed += await self._index.forget(connection, queue, missing)


async def _chunks(browser: QueueBrowser) -> Any:
    """Yield the letters of a queue in groups, without waiting for more of them."""
    chunk: list[tuple[Delivery, DeadLetter]] = []
    async for delivery in browser:
        chunk.append((delivery, parse_dead_letter(delivery)))
        if len(chunk) == PREFETCH or not browser.has_received:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _row(queue: str, letter: DeadLetter) -> LetterRow:
    return row(
        queue,
        letter.letter_id,
        logical_id=letter.id,
        client_id=letter.client_id,
        target=letter.target,
        reason=letter.reason,
        trace_id=letter.message.trace_id,
        at=datetime.fromtimestamp(letter.died_at or time.time(), UTC),
    )
