"""Consumes a work queue: passes each message to a handler and acts on the outcome.

Only this module acknowledges, requeues, defers, retries and dead-letters. Copies, dead letters and
the facts for owners are confirmed by the broker before the message is acknowledged. So a crash can
repeat work, but it loses nothing.
"""

import asyncio
import logging
import math
import random
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, Generic

from prometheus_client import Counter

from shared.amqp import spans
from shared.amqp.ack_batcher import AckBatcher
from shared.amqp.codec import Properties
from shared.amqp.connection import BrokerConnection, keep_connected, run_until_first_ends
from shared.amqp.dead_letters import letter_dead
from shared.amqp.declare import declare
from shared.amqp.delivery_tasks import DeliveryTasks
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.message import (
    OUTCOMES,
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
from shared.amqp.steps import Step, Steps
from shared.amqp.subscription import subscribe
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
from shared.resilience.retry import JITTER, GiveUp, decide, defer, first_tier, next_hop
from shared.topology import Tier, Topology, dead_queue, tier_queue, tiers_of
from shared.tracing import active

logger = logging.getLogger(__name__)

CONSUMED: Final = Counter(
    "ringback_consumed", "Acknowledged messages by outcome.", ["queue", "outcome"]
)
BUGS: Final = Counter("ringback_handler_bugs", "Unexpected errors in handlers.", ["queue"])

# Seconds between two batches of acks. At 5,000 messages a second one ack frame and one batch of
# facts then serve 100 messages. With 0.01, a callback costs 6 % more CPU (`python -m tests.bench`).
ACK_INTERVAL: Final = 0.02
# Seconds to wait when a store or the broker is unavailable.
INFRASTRUCTURE_RETRY_DELAY: Final = 1.0
# Seconds for which a message is held meanwhile. RabbitMQ closes the channel of a consumer that has
# not acknowledged a message for 30 minutes, and counts that as a delivery of all its messages.
HOLD_TIMEOUT: Final = 900.0
# Minimum seconds in a tier after that.
HOLD_DELAY: Final = 60.0
# Characters of a reason in the dead letter, the log and the fact. It may quote the sender.
MAX_REASON_LENGTH: Final = 1000


class Consumer(Generic[M, R]):
    """Consumes one work queue, on a connection that `run` keeps open until `drain`.

    `part` names it in the health of a process with several consumers.
    """

    def __init__(  # noqa: PLR0913 - the composition root passes each collaborator by name
        self,
        spec: ConsumerSpec[M, R],
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
        self._spec = spec
        self._tiers = tiers_of(spec.queue)
        self._keep_connected = partial(keep_connected, url, name=name, part=part, health=health)
        self._topology = topology
        self._publisher = publisher
        self._prefetch = prefetch
        self._clock = clock
        self._started = partial(health.up, part)
        health.expect(part)
        self._tasks = DeliveryTasks()
        self._steps = Steps()
        self._acks: AckBatcher | None = None
        self._bugs = BUGS.labels(spec.queue)
        self._repeated = CONSUMED.labels(spec.queue, "repeated")
        self._count = {kind: CONSUMED.labels(spec.queue, name) for kind, name in OUTCOMES.items()}

    async def run(self) -> None:
        """Consume until cancelled.

        Raises:
            TopologyMismatchError: the broker's queues differ from `topology`.
        """
        await self._keep_connected(session=self._serve)

    async def drain(self, grace: float) -> None:
        """Stop consuming, finish messages in progress for `grace` seconds, and ack these.

        The broker delivers the others again.
        """
        await self._tasks.stop()
        self._spec.drain()
        await self._tasks.finish(grace)
        if self._acks is not None:
            await self._acks.flush()

    async def _serve(self, broker: BrokerConnection) -> None:
        if self._tasks.draining:
            return
        await self._publisher.ready()
        await self._spec.ready()
        await declare(broker.connection, self._topology)
        subscription = await subscribe(broker, self._spec.queue)
        acks = self._acks = AckBatcher(subscription.intercepted, self._spec.send_facts)

        def ended(tag: int, error: BaseException | None) -> None:
            if error is not None:
                # The queue's delivery limit ends a message that always fails.
                logger.critical("bug in the consumer", exc_info=error)
                acks.reject(tag)

        try:
            await run_until_first_ends(
                self._tasks.consume(
                    subscription,
                    partial(self._process, acks),
                    started=self._started,
                    ended=ended,
                    prefetch=self._prefetch,
                ),
                acks.run(ACK_INTERVAL),
            )
        finally:
            self._acks = None
            acks.lost = True

    async def _process(self, acks: AckBatcher, delivery: Delivery) -> None:
        """Process one delivery: parse, identify, finish it if it is not a repeat, acknowledge."""
        acks.started(delivery.tag)
        outcome: Outcome[R] | None
        message, model, tier, outcome = self._parse(delivery)
        # A sender may repeat its message_id, even for another body. So only copies and redeliveries
        # of the same body can be repeats.
        key = (message.id, message.chain, message.step, hash(message.body))
        if message.chain and (message.step or delivery.redelivered):
            done_by = self._steps.done_by(key, acks)
            if done_by is not None:
                self._repeated.inc()
                acks.done(delivery.tag, done_by.fact, done_by.letter)
                return
        step = self._steps.begin(key, acks)
        if active.tracer is not None and tier is None and message.id:
            message.span = spans.process(active.tracer, self._spec.queue, message)
        try:
            if model is not None and message.id:
                outcome = await self._handle(message, model, acks)
            outcome = outcome or await self._forward(message, tier, step)
            if outcome is not None:
                outcome = await self._finish(message, model, outcome, step)
        except InfrastructureError:
            acks.requeue(delivery.tag)
        else:
            if not acks.lost:
                acks.done(delivery.tag, step.fact, step.letter)
        finally:
            self._steps.end(key, step)
            if message.span is not None:
                spans.end(message.span, outcome)

    def _parse(self, delivery: Delivery) -> tuple[Message, M | None, Tier | None, Dead | None]:
        """Return the message, and its model, or the tier in which it waits, or why it is dead."""
        message: Message | None = None
        try:
            message = parse_delivery(delivery)
            tier = self._tier_before_attempt(message)
            if tier is not None:
                return message, None, tier, None
            model = self._spec.parse(message)
            _identify(message, self._spec.identity(model))
        except ContractViolationError as error:
            message = message or Message("", Properties(), delivery.body)
            message.id = message.id or new_id()
            return message, None, None, _dead(str(error), error)
        return message, model, None, None

    async def _forward(self, message: Message, tier: Tier | None, step: Step) -> Dead | None:
        """Publish a message without an outcome: to a tier, or to its queue with an id.

        All attempts must carry the same id, even after a crash. So a message without one gets it in
        the queue, before the first attempt.
        """
        queue = self._spec.queue
        if message.id:
            queue = tier_queue(queue, tier or first_tier(HOLD_DELAY, self._tiers))
        else:
            message.id = new_id()
        try:
            await self._publish_copy(message, queue, {}, step)
        except UnpublishableError as error:
            return _dead(str(error), error)
        return None

    async def _finish(
        self, message: Message, model: M | None, outcome: Outcome[R], step: Step
    ) -> Outcome[R]:
        """Follow up on the outcome of a message, report it, and return the final outcome."""
        if type(outcome) is not Done:
            outcome = await self._follow_up(message, model, outcome, step)
        if step.acks.lost and not step.finished:
            return outcome  # the broker delivers the message again
        self._count[type(outcome)].inc()
        step.fact = self._spec.report(message, model, outcome)
        return outcome

    def _tier_before_attempt(self, message: Message) -> Tier | None:
        """Return the tier in which the message keeps waiting, or None if its attempt is due."""
        if not message.not_before:
            return None
        remaining = message.not_before - self._clock.now()
        # Ringback never sets a longer wait, so this header is from the sender and is ignored.
        if not 0 < remaining <= self._tiers[-1].seconds * (1 + JITTER):
            return None
        return next_hop(remaining, random.random(), self._tiers)  # noqa: S311 - not a secret

    async def _handle(self, message: Message, model: M, acks: AckBatcher) -> Outcome[R] | None:
        """Call the handler, and return the outcome by the error table of docs/architecture.md.

        Returns None without an outcome, because a store or the broker stays unavailable.
        """
        hold_until = self._clock.monotonic() + HOLD_TIMEOUT
        while True:
            now = self._clock.now()
            message.first_at = min(message.first_at or now, now)
            try:
                return Done(await self._spec.handle(message, model))
            except (ContractViolationError, PermanentError) as error:
                return _dead(str(error), error, attempted=not isinstance(error, ExpiredError))
            except TransientError as error:
                return self._retry(message, model, error)
            except DeferredError as error:
                return self._defer(message, model, error)
            except InfrastructureError:
                if self._tasks.draining or acks.lost:  # the broker delivers the message again
                    raise
                if self._clock.monotonic() >= hold_until:
                    return None
                # The message keeps its prefetch slot: a full prefetch window stops consumption.
                await asyncio.sleep(INFRASTRUCTURE_RETRY_DELAY)
            except Exception as error:  # a bug: retried, so that no message is lost
                self._bugs.inc()
                logger.exception(
                    "bug in a handler",
                    extra={
                        "message_id": message.id,
                        "mailing_id": getattr(model, "mailing_id", None),
                        "recipient_id": getattr(model, "recipient_id", None),
                    },
                )
                bug = TransientError(f"internal error: {type(error).__name__}")
                return self._retry(message, model, bug)

    def _retry(self, message: Message, model: M, error: TransientError) -> Retried | Dead:
        decision = decide(
            self._spec.policy(model),
            self._tiers,
            attempt=message.attempt,
            first_at=message.first_at,
            now=self._clock.now(),
            error=error,
            chance=random.random(),  # noqa: S311 - jitter, not a secret
        )
        if isinstance(decision, GiveUp):
            return _given_up(decision, error, retry_after=error.retry_after)
        return Retried(decision.tier, decision.not_before, error)

    def _defer(self, message: Message, model: M, error: DeferredError) -> Deferred | Dead:
        decision = defer(
            self._spec.policy(model),
            self._tiers,
            first_at=message.first_at if error.ages else math.inf,
            now=self._clock.now(),
            error=error,
        )
        if isinstance(decision, GiveUp):
            return _given_up(decision, error, attempted=False)
        if not error.ages:
            message.first_at += decision.seconds
        return Deferred(decision, str(error))

    async def _follow_up(
        self, message: Message, model: M | None, outcome: Outcome[R], step: Step
    ) -> Outcome[R]:
        """Publish the copy or dead letter for an outcome, and return the final outcome.

        A message that cannot be parsed may not be its owner's, although a copied header says so.
        The owner gets a fact, but the message is dead-lettered as well.
        """
        if model is not None:
            outcome = _for_owner(message, outcome)
        try:
            await self._publish_outcome(message, outcome, step)
        except UnpublishableError as error:
            outcome = _for_owner(message, _dead(f"cannot be retried: {error}", error))
            await self._publish_outcome(message, outcome, step)
        return _for_owner(message, outcome)

    async def _publish_outcome(self, message: Message, outcome: Outcome[R], step: Step) -> None:
        changes: dict[str, Any] = {headers.FIRST_AT: int(message.first_at * 1000)}
        match outcome:
            case Retried(tier, not_before):
                changes[headers.ATTEMPT] = message.attempt
                changes[headers.NOT_BEFORE] = int(not_before * 1000)
                changes[headers.DEFERRALS] = 0
                await self._publish_copy(message, tier_queue(self._spec.queue, tier), changes, step)
            case Deferred(tier):
                changes[headers.DEFERRALS] = message.deferrals + 1
                await self._publish_copy(message, tier_queue(self._spec.queue, tier), changes, step)
            case Dead(reason):
                await self._dead_letter(message, reason, step)

    async def _dead_letter(self, message: Message, reason: str, step: Step) -> None:
        now = int(self._clock.now() * 1000)
        letter_id = new_id()
        changes: dict[str, str | int] = {
            headers.REASON: reason,
            headers.DIED_AT: now,
            headers.LETTER: letter_id,
        }
        if message.first_at:
            changes[headers.FIRST_AT] = int(message.first_at * 1000)
            changes[headers.ATTEMPT] = message.attempt
        queue = dead_queue(self._spec.queue)
        properties = message.copy_properties(changes, message_id=message.properties.message_id)
        properties.headers = {
            name: value
            for name, value in (properties.headers or {}).items()
            if name not in (headers.CHAIN, headers.STEP)  # a redrive begins a new chain
        }
        try:
            await self._publish(OutgoingMessage(queue, properties, message.body), step)
        except UnpublishableError as error:  # its headers are not encodable, or fill the frame
            bare = Properties(
                content_type=message.properties.content_type,
                type=message.properties.type,
                message_id=message.properties.message_id,
                delivery_mode=properties.delivery_mode,
                headers={
                    headers.ID: message.id,
                    headers.REASON: f"{reason}; {error}",
                    headers.DIED_AT: now,
                    headers.LETTER: letter_id,
                },
            )
            await self._publish(OutgoingMessage(queue, bare, message.body), step)
        step.letter = letter_dead(
            self._spec.queue, message, letter_id=letter_id, reason=reason, at=now / 1000
        )

    async def _publish_copy(
        self, message: Message, queue: str, changes: Mapping[str, Any], step: Step
    ) -> None:
        """Publish a fresh copy of the message, the next step of its chain.

        Raises:
            UnpublishableError: its headers are not encodable, or too large with Ringback's own.
        """
        chain = {headers.CHAIN: message.chain or new_id(), headers.STEP: message.step + 1}
        properties = message.copy_properties({**changes, **chain}, message_id=new_id())
        await self._publish(OutgoingMessage(queue, properties, message.body), step)

    async def _publish(self, outgoing: OutgoingMessage, step: Step) -> None:
        """Publish until confirmed, or until the broker delivers the message again."""
        while not step.acks.lost:
            try:
                await self._publisher.publish(outgoing)
            except InfrastructureError as error:
                logger.warning("publish retried: %s", error, extra={"queue": outgoing.routing_key})
                jitter = 0.5 + random.random()  # noqa: S311 - not a secret
                await asyncio.sleep(INFRASTRUCTURE_RETRY_DELAY * jitter)
                await self._publisher.ready()
            else:
                step.finished = True
                return


def _dead(reason: str, error: Exception, *, attempted: bool = True) -> Dead:
    return Dead(reason[:MAX_REASON_LENGTH], error, attempted)


def _given_up(
    decision: GiveUp, error: Exception, *, retry_after: float = 0.0, attempted: bool = True
) -> Dead:
    expired = ExpiredError(decision.reason, retry_after=retry_after)
    cause = expired if decision.expired else error
    return _dead(decision.reason, cause, attempted=attempted)


def _identify(message: Message, identity: str | None) -> None:
    """Give the message its model's id, if it has one. Only the owner's own id proves the owner.

    A program that copies all headers to another message would otherwise give it an owner, which
    does not know it, so its failure would vanish.
    """
    if identity != message.id:
        message.owner = None
    message.id = identity or message.id


def _for_owner(message: Message, outcome: Outcome[R]) -> Outcome[R]:
    """Report to the owner instead of dead-lettering: owned messages are never dead-lettered.

    The owner decides whether it gives up, so the reason is only the error of the last attempt.
    """
    if isinstance(outcome, Dead) and message.owner:
        error = outcome.error
        attempt_failed = isinstance(error, TransientError) and outcome.attempted
        reason = str(error)[:MAX_REASON_LENGTH] if attempt_failed else outcome.reason
        return DispatchFailed(reason, error, outcome.attempted)
    return outcome
