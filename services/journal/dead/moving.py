"""The work of the jobs that redrive or discard dead letters.

A step moves a few letters: the copies are published and confirmed, the rows and the counts of the
job change in one transaction, and then the letters are acknowledged. A kill before the transaction
repeats the copies, with the same message ids. A kill after it repeats only the acks, because the
letters are known to be moved. So no letter is lost, and the counts are exact.

Copies that the broker refuses are published again. After too many tries in a row without a confirm,
the job fails with the reason.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from services.journal.dead.index import LetterIndex
from services.journal.dead.selection import Selection
from services.journal.jobs.store import ClaimedJob, Jobs, StoredJob
from services.journal.jobs.tries import check_tries, was_published
from services.journal.jobs.worker import Step
from shared.amqp.connection import BrokerConnection, connect
from shared.amqp.dead_letters import (
    DeadLetter,
    letter_moved,
    parse_dead_letter,
    redrive_properties,
)
from shared.amqp.fact_sender import FactSender
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.publisher import OutgoingMessage, Publisher, UnpublishableError
from shared.amqp.queue_browser import QueueBrowser, browse_queue
from shared.clock import Clock
from shared.contracts.journal import JobKind
from shared.contracts.journal_facts import LetterDiscarded, LetterRedriven
from shared.postgres.pool import Database
from shared.topology import dead_queue

logger = logging.getLogger(__name__)

# Messages received ahead. They bound the memory, and the messages whose acks a kill can lose.
PREFETCH: Final = 1000
# Letters that are looked up at a time.
MAX_LOOKUP: Final = 500
# Readings of the whole queue without a letter to move, after which those that are left are missing.
MAX_IDLE_PASSES: Final = 2
# Seconds between two such readings, and for which other consumers may hold letters. RabbitMQ
# notices within half a minute that the machine of a consumer is gone.
PASS_DELAY: Final = 1.0
HOLD_TIMEOUT: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Found:
    """A letter of the job. `again`: it was moved before, and only its ack is missing."""

    delivery: Delivery
    letter: DeadLetter
    again: bool


class Moves:
    """The work of the kinds redrive and discard."""

    def __init__(  # noqa: PLR0913 - the composition root passes each collaborator by name
        self,
        database: Database,
        jobs: Jobs,
        index: LetterIndex,
        *,
        publisher: Publisher,
        facts: FactSender,
        url: str,
        name: str,
        clock: Clock,
    ) -> None:
        self.database = database
        self.jobs = jobs
        self.index = index
        self.publisher = publisher
        self.facts = facts
        self.clock = clock
        self._url = url
        self._name = name

    @asynccontextmanager
    async def work(self, claimed: ClaimedJob) -> AsyncIterator[Step]:
        """Open a connection for the letters of a job."""
        # Not from the claim, which is older if the broker has refused copies since.
        stored = await self.jobs.get(claimed.job.id)
        tries = (claimed.job if stored is None else stored).cursor.get("tries", 0)
        async with connect(self._url, name=self._name) as broker, AsyncExitStack() as stack:
            move = _Move(self, claimed, broker, tries)
            stack.push_async_callback(move.close)
            yield move.step


class _Move:
    """The progress of a job on one connection.

    tries: how often in a row the broker has not confirmed a single copy.
    """

    def __init__(
        self, moves: Moves, claimed: ClaimedJob, broker: BrokerConnection, tries: int
    ) -> None:
        self._moves = moves
        self._job = claimed.job
        self._queue = claimed.job.queue or ""
        self._selection = selection_of(claimed.job)
        self._continued = claimed.continued
        self._broker = broker
        self._tries = tries
        self._pass = AsyncExitStack()
        self._browser: QueueBrowser | None = None
        self._found: deque[_Found] = deque()
        self._unpublishable: set[str] = set()
        self._moved = 0
        self._moved_in_pass = 0
        self._idle_passes = 0
        self._held_since: float | None = None

    async def close(self) -> None:
        """Return all letters that were not moved to their queue."""
        self._browser = None
        self._found.clear()
        await self._pass.aclose()

    async def step(self, limit: int) -> int | None:
        """Move up to `limit` letters. Return how many were moved, or None at the end."""
        if not self._continued and self._moved + len(self._unpublishable) >= self._job.matching:
            await self.close()  # RabbitMQ applies the acks before the job counts as finished
            return None
        if self._browser is None:
            self._browser = await self._pass.enter_async_context(
                browse_queue(self._broker, dead_queue(self._queue), prefetch=PREFETCH)
            )
        if not self._found and not await self._read(self._browser):
            return await self._end_pass()
        batch = [self._found.popleft() for _ in range(min(limit, len(self._found)))]
        return await self._move(self._browser, batch) if batch else 0

    async def _read(self, browser: QueueBrowser) -> bool:
        """Read some letters, and keep those to move. Return False at the end of the queue."""
        letters: list[tuple[Delivery, DeadLetter]] = []
        try:
            while not letters or (browser.has_received and len(letters) < MAX_LOOKUP):
                delivery = await anext(browser)
                letters.append((delivery, parse_dead_letter(delivery)))
        except StopAsyncIteration:
            return bool(letters)
        ids = [letter.letter_id for _, letter in letters]
        wanted = await self._moves.index.matching(self._selection, ids)
        others = [each for each in ids if each not in wanted]
        moved = await self._moves.index.moved(self._queue, others) if others else frozenset()
        seen: set[str] = set()
        for (delivery, letter), id_ in zip(letters, ids, strict=True):
            if (id_ in wanted and id_ not in self._unpublishable) or id_ in moved:
                self._found.append(_Found(delivery, letter, id_ in moved or id_ in seen))
                seen.add(id_)
        return True

    async def _move(self, browser: QueueBrowser, batch: Sequence[_Found]) -> int:
        if self._job.kind is JobKind.REDRIVE:
            gone, faults = await self._publish(batch)
        else:
            gone, faults = list(batch), []
        count = 0
        tries = 0 if gone else self._tries + any(map(was_published, faults))
        if gone or tries != self._tries:
            ids = {found.letter.letter_id for found in gone}
            async with self._moves.database.transaction() as connection:
                if ids:
                    count = await self._moves.index.remove(connection, self._queue, ids)
                await self._moves.jobs.advance(
                    connection,
                    self._job,
                    done=count,
                    cursor=None if tries == self._tries else {**self._job.cursor, "tries": tries},
                )
            self._tries = tries
        if gone:
            await self._report(gone)
            for found in gone:
                browser.remove(found.delivery)
            self._moved += count
            self._moved_in_pass += len(gone)
        if (error := next(filter(was_published, faults), None)) is not None:
            check_tries(
                tries,
                error,
                action="redrive dead letters",
                advice="When the queue accepts messages, start another job for the remaining ones.",
            )
        if faults:
            raise faults[0]
        return count

    async def _publish(self, batch: Sequence[_Found]) -> tuple[list[_Found], list[BaseException]]:
        """Publish the copies. Return the letters with a confirmed copy, and the errors of others.

        A letter that is known to be moved has one. An id that was derived from its content is not
        unique, so that letter is published again.
        """
        gone, waiting = [], []
        for found in batch:
            if found.again and found.letter.own_id is not None:
                gone.append(found)
                continue
            properties = redrive_properties(
                found.letter, message_id=copy_id(self._job, found.letter)
            )
            copy = OutgoingMessage(self._queue, properties, found.delivery.body)
            try:
                waiting.append((found, self._moves.publisher.publish(copy)))
            except UnpublishableError as error:
                self._unpublishable.add(found.letter.letter_id)
                logger.warning(
                    "dead letter not redriven: %s", error, extra={"message_id": found.letter.id}
                )
        results = await asyncio.gather(*(each for _, each in waiting), return_exceptions=True)
        faults = [result for result in results if result is not None]
        gone += [
            found for (found, _), result in zip(waiting, results, strict=True) if result is None
        ]
        return gone, faults

    async def _report(self, gone: Sequence[_Found]) -> None:
        job, now = self._job, self._moves.clock.now()
        fact = LetterRedriven if job.kind is JobKind.REDRIVE else LetterDiscarded
        await self._moves.facts.send_confirmed(
            [
                letter_moved(
                    fact, self._queue, found.letter, at=now, actor=job.actor, job=str(job.id)
                )
                for found in gone
            ]
        )

    async def _end_pass(self) -> int | None:
        """Return None if nothing is left, or 0 to read the queue again."""
        await self.close()
        left = await self._moves.index.count(self._selection)
        if left <= len(self._unpublishable):
            return None
        if self._moved_in_pass:
            self._moved_in_pass, self._idle_passes, self._held_since = 0, 0, None
            return 0
        if not await self._is_held():
            self._idle_passes += 1
            if self._idle_passes >= MAX_IDLE_PASSES:
                logger.warning(
                    "dead letters missing in their queue",
                    extra={"queue": self._queue, "messages": left},
                )
                return None
        await asyncio.sleep(PASS_DELAY)
        return 0

    async def _is_held(self) -> bool:
        """Return whether another consumer may hold letters, for HOLD_TIMEOUT seconds."""
        now = self._moves.clock.monotonic()
        self._held_since = self._held_since or now
        channel = await self._broker.connection.channel(publisher_confirms=False)
        state = await channel.queue_declare(dead_queue(self._queue), passive=True)
        await channel.close()
        return bool(state.consumer_count) and now - self._held_since < HOLD_TIMEOUT


def selection_of(job: StoredJob) -> Selection:
    """Return the letters of a job: those that matched when it was started."""
    cursor = job.cursor
    return Selection(job.queue or "", job.filter, cursor.get("reason_key"), cursor["last"])


def copy_id(job: StoredJob, letter: DeadLetter) -> str:
    """Return the message id of a redriven copy, the same if it is published again."""
    return sha256(f"{job.id}/{letter.letter_id}".encode()).hexdigest()[:32]
