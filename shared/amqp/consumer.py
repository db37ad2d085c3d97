"""Takes messages from a work queue, gives each to a handler, and settles it by what comes back.

The only place that acks, requeues, defers, retries or buries. What follows from a message (its copy
in a tier, its dead letter, its facts) is confirmed by the broker before the message is acked, so a
crash at any point costs a repeat, never a loss.
"""

import asyncio
import logging
import random
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, Generic

from prometheus_client import Counter

from shared.amqp.ack_batcher import AckBatcher
from shared.amqp.codec import Properties
from shared.amqp.connection import BrokerConnection, keep_connected, run_until_first_ends
from shared.amqp.declare import declare
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.message import (
    ConsumerSpec,
    Dead,
    Deferred,
    DispatchFailed,
    Done,
    M,
    Message,
    Outcome,
    R,
    Retried,
    parse_delivery,
)
from shared.amqp.publisher import OutgoingMessage, Publisher, UnpublishableError, new_id
from shared.amqp.subscription import Subscription, subscribe
from shared.clock import Clock
from shared.contracts import headers
from shared.errors import (
    ContractViolationError,
    DeferredError,
    ExpiredError,
    InfrastructureError,
    PermanentError,
    TransientError,
)
from shared.process.health import Health
from shared.resilience.retry import JITTER, GiveUp, decide, defer, next_hop
from shared.topology import TIERS, Topology, dead_queue, tier_queue

logger = logging.getLogger(__name__)

CONSUMED: Final = Counter(
    "ringback_consumed", "Messages settled, by what became of them.", ["queue", "outcome"]
)
BUGS: Final = Counter("ringback_handler_bugs", "Unexpected errors in handlers.", ["queue"])
OUTCOMES: Final[Mapping[type, str]] = {
    Done: "done",
    Retried: "retried",
    Deferred: "postponed",
    Dead: "dead",
    DispatchFailed: "given_back",
}

# Seconds between two settlements: long enough for one ack frame and one batch of facts to stand
# for many messages (50 at 5,000 a second), short beside any callback.
SETTLE_INTERVAL: Final = 0.01
# Seconds to wait when the broker or a store is lost or refuses, before going on.
INFRASTRUCTURE_RETRY_DELAY: Final = 1.0
# What a reason may hold of a sender's text, in the dead letter, the log and the fact.
MAX_REASON_LENGTH: Final = 1000
# Seconds; what shared.resilience.retry gives at most.
MAX_WAIT: Final = TIERS[-1].seconds * (1 + JITTER)


class Consumer(Generic[M, R]):
    """One connection that consumes one work queue, kept open by `run`, ended by `drain`.

    `part` is its name in the health of a process with several.
    """

    def __init__(  # noqa: PLR0913 - the composition root names each
        self,
        work: ConsumerSpec[M, R],
        *,
        url: str,
        name: str,
        topology: Topology,
        publisher: Publisher,
        prefetch: int,
        clock: Clock,
        health: Health,
        part: str = "consumer",
    ) -> None:
        self._work = work
        self._url = url
        self._name = name
        self._topology = topology
        self._publisher = publisher
        self._prefetch = prefetch
        self._clock = clock
        self._health = health
        self._part = part
        health.expect(part)
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._current: tuple[Subscription, AckBatcher] | None = None
        self._count = {kind: CONSUMED.labels(work.queue, name) for kind, name in OUTCOMES.items()}

    async def run(self) -> None:
        """Consume until cancelled.

        Raises:
            TopologyMismatch: the broker's queues are not ours.
        """
        await keep_connected(
            self._url,
            name=self._name,
            part=self._part,
            health=self._health,
            session=self._consume_on,
        )

    async def drain(self, grace: float) -> None:
        """Take nothing more, finish what is in flight within `grace` seconds, requeue the rest."""
        self._draining = True
        if self._current is not None:
            await self._current[0].stop()
        self._work.drain()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=grace)
            for task in late:
                task.cancel()
        if self._current is not None:
            await self._current[1].flush()

    async def _consume_on(self, link: BrokerConnection) -> None:
        if self._draining:
            return
        await self._publisher.ready()
        await declare(link.connection, self._topology)
        deliveries = await subscribe(link, self._work.queue)
        settlement = AckBatcher(deliveries.intercepted, self._announce)
        loop = asyncio.get_running_loop()

        def take(delivery: Delivery) -> None:
            task = loop.create_task(self._process(delivery, settlement))
            self._tasks.add(task)
            task.add_done_callback(partial(ended, delivery.tag))

        def ended(tag: int, task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and task.exception() is not None:
                # The message goes back; the queue's delivery limit ends what never works.
                logger.critical("bug in the consumer", exc_info=task.exception())
                settlement.requeue(tag)

        await deliveries.start(take, prefetch=self._prefetch)
        self._current = (deliveries, settlement)
        self._health.up(self._part)
        try:
            await run_until_first_ends(
                deliveries.lasts(idle=lambda: not (self._tasks or self._draining)),
                settlement.run(SETTLE_INTERVAL),
            )
        finally:
            self._current = None
            settlement.lost = True

    async def _process(self, delivery: Delivery, settlement: AckBatcher) -> None:
        message: Message | None = None
        model: M | None = None
        try:
            message = parse_delivery(delivery)
            remaining = message.not_before - self._clock.now() if message.not_before else 0.0
            # No schedule of ours asks for more than the longest wait: that is a sender's nonsense.
            wait = 0 < remaining <= MAX_WAIT
            hop = next_hop(remaining, random.random()) if wait else None  # noqa: S311
            if hop is not None:
                await self._copy(message, tier_queue(self._work.queue, hop), {}, settlement)
                settlement.done(delivery.tag)
                return
            model = self._work.read(message)
            message.id = self._work.identity(model) or message.id
            if not message.id:
                # Every try must carry the same id, also after a crash: it is given one in the
                # queue, before the first try.
                message.id = new_id()
                await self._copy(message, self._work.queue, {}, settlement)
                settlement.done(delivery.tag)
                return
            outcome = await self._attempt(message, model)
        except (ContractViolationError, UnpublishableError) as error:
            if message is None:
                message = Message("", Properties(), delivery.body)
            message.id = message.id or new_id()
            outcome = _dead(str(error), error)
        except InfrastructureError:
            settlement.requeue(delivery.tag)
            return
        if settlement.lost:
            return
        outcome = _owned(message, outcome)
        try:
            await self._follow(message, outcome, settlement)
        except UnpublishableError as error:
            outcome = _owned(message, _dead(f"can't be retried: {error}", error))
            await self._follow(message, outcome, settlement)
        if settlement.lost:
            return
        self._count[type(outcome)].inc()
        settlement.done(delivery.tag, self._work.report(message, model, outcome))

    async def _attempt(self, message: Message, model: M) -> Outcome[R]:
        """Handle the message, and read its end from the error table of docs/architecture.md."""
        while True:
            now = self._clock.now()
            message.first_at = min(message.first_at or now, now)
            try:
                return Done(await self._work.handle(message, model))
            except (ContractViolationError, PermanentError) as error:
                return _dead(str(error), error)
            except DeferredError as postponed:
                return self._deferred(message, model, postponed)
            except InfrastructureError:
                if self._draining:
                    raise
                # Held here, the message keeps its prefetch slot: that is what stops the taking.
                await asyncio.sleep(INFRASTRUCTURE_RETRY_DELAY)
            except TransientError as error:
                return self._after(message, model, error)
            except Exception as error:  # a bug in a handler is no reason to lose a message
                BUGS.labels(self._work.queue).inc()
                logger.exception("bug in a handler", extra={"message_id": message.id})
                return self._after(
                    message, model, TransientError(f"internal error: {type(error).__name__}")
                )

    def _after(self, message: Message, model: M, error: TransientError) -> Retried | Dead:
        decision = decide(
            self._work.policy(model),
            attempt=message.attempt,
            first_at=message.first_at,
            now=self._clock.now(),
            error=error,
            chance=random.random(),  # noqa: S311 - spreads a herd, guards nothing
        )
        if isinstance(decision, GiveUp):
            return _given_up(decision, error)
        return Retried(decision.tier, decision.not_before, error)

    def _deferred(self, message: Message, model: M, error: DeferredError) -> Deferred | Dead:
        decision = defer(
            self._work.policy(model), first_at=message.first_at, now=self._clock.now(), error=error
        )
        if isinstance(decision, GiveUp):
            return _given_up(decision, error)
        return Deferred(decision, str(error))

    async def _follow(
        self,
        message: Message,
        outcome: Outcome[R],
        settlement: AckBatcher,
    ) -> None:
        queue = self._work.queue
        changes = {headers.FIRST_AT: int(message.first_at * 1000)}
        match outcome:
            case Retried(tier, not_before):
                changes[headers.ATTEMPT] = message.attempt
                changes[headers.NOT_BEFORE] = int(not_before * 1000)
                changes[headers.DEFERRALS] = 0
                await self._copy(message, tier_queue(queue, tier), changes, settlement)
            case Deferred(tier):
                changes[headers.DEFERRALS] = message.deferrals + 1
                await self._copy(message, tier_queue(queue, tier), changes, settlement)
            case Dead(reason):
                await self._bury(message, reason, settlement)

    async def _bury(self, message: Message, reason: str, settlement: AckBatcher) -> None:
        now = int(self._clock.now() * 1000)
        changes: dict[str, str | int] = {headers.REASON: reason, headers.DIED_AT: now}
        if message.first_at:
            changes[headers.FIRST_AT] = int(message.first_at * 1000)
            changes[headers.ATTEMPT] = message.attempt
        properties = message.copied(changes, message_id=message.properties.message_id)
        letter = OutgoingMessage(dead_queue(self._work.queue), properties, message.body)
        try:
            await self._publish(letter, settlement)
        except UnpublishableError as error:  # its headers leave no room for ours, or are strange
            bare = Properties(
                content_type=message.properties.content_type,
                type=message.properties.type,
                message_id=message.properties.message_id,
                delivery_mode=properties.delivery_mode,
                headers={headers.ID: message.id, headers.REASON: f"{reason}; {error}"},
            )
            await self._publish(OutgoingMessage(letter.routing_key, bare, message.body), settlement)

    async def _copy(
        self, message: Message, queue: str, changes: Mapping[str, Any], settlement: AckBatcher
    ) -> None:
        """Publish a fresh copy of the message.

        Raises:
            UnpublishableError: its headers are strange, or leave no room for ours.
        """
        properties = message.copied(changes, message_id=new_id())
        await self._publish(OutgoingMessage(queue, properties, message.body), settlement)

    async def _publish(self, outgoing: OutgoingMessage, settlement: AckBatcher) -> None:
        """Publish until confirmed, or until the delivery is lost and its repeat will do it."""
        while not settlement.lost:
            try:
                await self._publisher.publish(outgoing)
            except InfrastructureError as error:
                logger.warning("publishing again: %s", error, extra={"queue": outgoing.routing_key})
                await asyncio.sleep(INFRASTRUCTURE_RETRY_DELAY * (0.5 + random.random()))  # noqa: S311
                await self._publisher.ready()
            else:
                return

    async def _announce(self, outgoing: list[OutgoingMessage]) -> None:
        """Publish facts until they are confirmed."""
        while True:
            try:
                await self._publisher.publish_all(outgoing)
            except InfrastructureError as error:
                logger.warning("publishing facts again: %s", error)
                await asyncio.sleep(INFRASTRUCTURE_RETRY_DELAY)
                await self._publisher.ready()
            else:
                return


def _dead(reason: str, error: Exception) -> Dead:
    return Dead(reason[:MAX_REASON_LENGTH], error)


def _given_up(decision: GiveUp, error: Exception) -> Dead:
    return _dead(decision.reason, ExpiredError(decision.reason) if decision.expired else error)


def _owned(message: Message, outcome: Outcome[R]) -> Outcome[R]:
    """What has an owner is not buried: its fact tells the owner, and precedes the ack."""
    if isinstance(outcome, Dead) and message.owner:
        return DispatchFailed(outcome.reason, outcome.error)
    return outcome
