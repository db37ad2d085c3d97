"""Every exchange, queue, binding and retry tier, as pure data. Only this module names them.

A work queue `Q` has a dead-letter queue `Q.dead` and one tier queue per delay: `Q.retry.5s`, …
A tier holds a message for its fixed TTL and then dead-letters it back to `Q`. No message in a tier
has its own expiration: it would wait behind the head of the queue. All dead-lettering is at least
once. That requires quorum queues and `x-overflow: reject-publish`. Without these, RabbitMQ silently
falls back to at most once.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from shared.registry import CHANNELS

CALLBACKS: Final = "callbacks"
OUTCOMES: Final = "outcomes"
SCHEDULES: Final = "schedules"  # the exchange and its work queue
SCHEDULER_OUTCOMES: Final = "scheduler.outcomes"
SCHEDULER_REQUESTS: Final = "scheduler.requests"
EVENTS: Final = "events"  # this one and the next two: the exchange and its work queue
POSTINGS: Final = "postings"
USER_EVENTS: Final = "user_events"
USER_EVENTS_WAKE: Final = "user_events.wake"  # an exchange; each gateway has a queue of its own
SUBSCRIPTIONS_OUTCOMES: Final = "subscriptions.outcomes"
SUBSCRIPTIONS_REQUESTS: Final = "subscriptions.requests"
MAILINGS_OUTCOMES: Final = "mailings.outcomes"
MAILINGS_REQUESTS: Final = "mailings.requests"
DELIVERY_REQUESTS: Final = "delivery.requests"
JOURNAL_FACTS: Final = "journal.facts"  # a stream
JOURNAL_REQUESTS: Final = "journal.requests"
CONTROLS: Final = "controls"  # a stream
# This one and the next: the exchange and its work queue.
MAILINGS_STARTS: Final = "mailings.starts"
MAILINGS_REPORTS: Final = "mailings.reports"

# x-delivery-limit: how often a message can return unacknowledged, because its worker died, before
# it is dead-lettered. 20 is the default of RabbitMQ 4; 3.10 has no default.
DELIVERY_LIMIT: Final = 20

# In a dead-letter queue each `ringback dead list` is a delivery, and RabbitMQ 4 would drop a
# message at the 21st. -1 means "no limit" from 4.0 on, but 3.10 drops a message at the first.
DEAD_QUEUE_DELIVERY_LIMIT: Final = 1_000_000

# Bytes of one fact in the stream, with its share of the message. A delivery has 600; a failed
# attempt with an excerpt of the response 2,200. Kept requests take their own size in addition.
FACT_BYTES: Final = 2048
DEFAULT_BACKLOG: Final = 1_000_000
# Bytes of the stream with the lists of paused targets. Only the last list counts.
CONTROLS_BYTES: Final = 1 << 20
# RabbitMQ drops the oldest segment of a stream as a whole. It keeps fewer than its maximum: up to
# two segments less (3.10.8). So segments are small.
_SEGMENTS: Final = 16
_MIN_SEGMENT_BYTES: Final = 1 << 20


STREAM: Final = "stream"  # the queue type of streams, with any QueueType


class QueueType(StrEnum):
    """How RabbitMQ stores a work queue. `classic` dead-letters only at most once."""

    QUORUM = "quorum"
    CLASSIC = "classic"


@dataclass(frozen=True, slots=True)
class Tier:
    """One retry delay: its suffix in queue names, and its TTL in seconds."""

    name: str
    seconds: int


TIERS: Final = (
    Tier("1s", 1),
    Tier("5s", 5),
    Tier("15s", 15),
    Tier("1m", 60),
    Tier("5m", 300),
    Tier("15m", 900),
    Tier("1h", 3600),
)
# For queues whose handlers never retry on purpose: only bugs are retried there.
BUG_TIERS: Final = tuple(tier for tier in TIERS if tier.name in {"5s", "1m"})


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: str = "topic"


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue with the arguments of its declaration."""

    name: str
    arguments: Mapping[str, str | int] = field(default_factory=dict)
    dead_letters_to: str | None = None  # a queue


@dataclass(frozen=True, slots=True)
class Binding:
    """Routes messages of `exchange` with a matching routing key to `queue`."""

    exchange: str
    queue: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class WorkQueue:
    """A queue that a service consumes, with its tiers and its dead-letter queue."""

    name: str
    bindings: tuple[tuple[str, str], ...] = ()  # (exchange, routing key)
    tiers: tuple[Tier, ...] = BUG_TIERS


@dataclass(frozen=True, slots=True)
class Topology:
    """A set of exchanges, queues and bindings to declare."""

    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[Binding, ...]

    def only(self, work_queues: Iterable[str]) -> "Topology":
        """Return all exchanges, but only these work queues with their tiers and bindings."""
        names = tuple(work_queues)
        queues = tuple(q for q in self.queues if work_queue_of(q.name) in names)
        return Topology(
            self.exchanges,
            queues,
            tuple(b for b in self.bindings if b.queue in {q.name for q in queues}),
        )


# Routing keys of the exchange `schedules`.
SCHEDULE, CANCEL, RESCHEDULE = "schedule", "cancel", "reschedule"
# Routing keys of the exchanges `postings`, `mailings.starts` and `mailings.reports`.
POSTING_KEY: Final = "posting"
START_KEY: Final = "start"
REPORT_KEY: Final = "report"

# Exchanges to which only Ringback's own services have the scheduler publish.
INTERNAL_EXCHANGES: Final = (MAILINGS_STARTS, MAILINGS_REPORTS)
EXCHANGES: Final = (
    *(
        Exchange(name)
        for name in (OUTCOMES, SCHEDULES, EVENTS, POSTINGS, USER_EVENTS, *INTERNAL_EXCHANGES)
    ),
    Exchange(USER_EVENTS_WAKE, "fanout"),
)
WORK_QUEUES: Final = (
    WorkQueue(CALLBACKS, tiers=TIERS),
    WorkQueue(SCHEDULES, tuple((SCHEDULES, key) for key in (SCHEDULE, CANCEL, RESCHEDULE))),
    WorkQueue(SCHEDULER_OUTCOMES, ((OUTCOMES, "callback.*.scheduler"),)),
    WorkQueue(EVENTS, ((EVENTS, "#"),)),
    WorkQueue(POSTINGS, ((POSTINGS, POSTING_KEY),)),
    WorkQueue(USER_EVENTS, ((USER_EVENTS, "#"),)),
    *(
        WorkQueue(queue, tiers=TIERS)
        for channel in CHANNELS.values()
        for queue in channel.queues.values()
    ),
    WorkQueue(MAILINGS_OUTCOMES, ((OUTCOMES, "message.*.mailings"),)),
    WorkQueue(MAILINGS_STARTS, ((MAILINGS_STARTS, START_KEY),)),
    WorkQueue(MAILINGS_REPORTS, ((MAILINGS_REPORTS, REPORT_KEY),)),
    WorkQueue(SUBSCRIPTIONS_OUTCOMES, ((OUTCOMES, "callback.*.subscriptions"),)),
)
# The queues in which services get the facts about what they own. Ringback publishes to them
# directly: on `outcomes`, an observer with a full queue would make the broker refuse the facts. The
# bindings above are for processes of an older version, and for programs that play a service's part.
OWNER_QUEUES: Final = {
    "scheduler": SCHEDULER_OUTCOMES,
    "mailings": MAILINGS_OUTCOMES,
    "subscriptions": SUBSCRIPTIONS_OUTCOMES,
}
# Queues of RPC requests. The broker drops a request at its timeout, so they need no tiers and no
# dead-letter queue.
REQUEST_QUEUES: Final = (
    SCHEDULER_REQUESTS,
    MAILINGS_REQUESTS,
    DELIVERY_REQUESTS,
    SUBSCRIPTIONS_REQUESTS,
    JOURNAL_REQUESTS,
)
# Streams keep their messages after they are read, up to a size. They never refuse a message.
STREAM_BINDINGS: Final = (Binding(OUTCOMES, JOURNAL_FACTS, "#"),)


def tiers_of(work_queue: str) -> tuple[Tier, ...]:
    """Return the tiers of a work queue, the shortest first."""
    return next(queue.tiers for queue in WORK_QUEUES if queue.name == work_queue)


def tier_queue(work_queue: str, tier: Tier) -> str:
    """Return the name of the queue that holds messages of `work_queue` for `tier`."""
    return f"{work_queue}.retry.{tier.name}"


def dead_queue(work_queue: str) -> str:
    """Return the name of the dead-letter queue of `work_queue`."""
    return f"{work_queue}.dead"


def work_queue_of(queue: str) -> str:
    """Return the work queue of a tier or dead-letter queue, or the name of a work queue itself."""
    return queue.split(".retry.", maxsplit=1)[0].removesuffix(".dead")


def topology(
    queue_type: QueueType = QueueType.QUORUM, *, backlog: int = DEFAULT_BACKLOG
) -> Topology:
    """Return the whole topology of Ringback, for quorum or classic queues.

    `backlog` is the number of facts that wait for the journal.
    """
    return Topology(
        EXCHANGES,
        (
            *(queue for work in WORK_QUEUES for queue in _queues(work, queue_type)),
            *(_request_queue(name, queue_type) for name in REQUEST_QUEUES),
            _stream(JOURNAL_FACTS, backlog * FACT_BYTES),
            _stream(CONTROLS, CONTROLS_BYTES),
        ),
        (
            *(Binding(ex, work.name, key) for work in WORK_QUEUES for ex, key in work.bindings),
            *STREAM_BINDINGS,
        ),
    )


def _stream(name: str, kept: int) -> Queue:
    """Return a stream that keeps at least the last `kept` bytes."""
    segment = max(kept // _SEGMENTS, _MIN_SEGMENT_BYTES)
    return Queue(
        name,
        {
            "x-queue-type": STREAM,
            "x-max-length-bytes": kept + 2 * segment,
            "x-stream-max-segment-size-bytes": segment,
        },
    )


def _request_queue(name: str, queue_type: QueueType) -> Queue:
    """Return a queue that a lost node does not take away. A request that kills its service ends."""
    limit = {"x-delivery-limit": DELIVERY_LIMIT} if queue_type is QueueType.QUORUM else {}
    return Queue(name, {"x-queue-type": queue_type.value, **limit})


def _queues(work: WorkQueue, queue_type: QueueType) -> Iterator[Queue]:
    base: dict[str, str | int] = {"x-queue-type": queue_type.value}
    dead_lettering: dict[str, str | int] = {"x-dead-letter-exchange": ""}
    work_limit: dict[str, str | int] = {}
    dead_limit: dict[str, str | int] = {}
    if queue_type is QueueType.QUORUM:
        dead_lettering |= {
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        work_limit = {"x-delivery-limit": DELIVERY_LIMIT}
        dead_limit = {"x-delivery-limit": DEAD_QUEUE_DELIVERY_LIMIT}
    dead = dead_queue(work.name)
    yield Queue(
        work.name,
        base | dead_lettering | work_limit | {"x-dead-letter-routing-key": dead},
        dead_letters_to=dead,
    )
    for tier in work.tiers:
        yield Queue(
            tier_queue(work.name, tier),
            base
            | dead_lettering
            | {"x-dead-letter-routing-key": work.name, "x-message-ttl": tier.seconds * 1000},
            dead_letters_to=work.name,
        )
    yield Queue(dead, base | dead_limit)
