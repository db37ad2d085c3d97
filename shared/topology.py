"""Every exchange, queue, binding and retry tier, as pure data; the only place with their names.

A work queue `Q` has a dead queue `Q.dead` and one tier queue per delay, `Q.retry.5s` and so on.
A tier holds a message for its fixed TTL and dead-letters it back to `Q`: one TTL per queue, never a
per-message expiration, which would wait behind the head of the line. All dead-lettering is
at-least-once, which needs quorum queues and `x-overflow: reject-publish` (without it RabbitMQ
silently falls back to at-most-once).
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
EVENTS: Final = "events"  # this and the next two: the exchange and its work queue
POSTINGS: Final = "postings"
USER_EVENTS: Final = "user_events"
MAILINGS_OUTCOMES: Final = "mailings.outcomes"
MAILINGS_REQUESTS: Final = "mailings.requests"

# x-delivery-limit: how often a message may come back unacknowledged (its worker died) before it is
# dead. 20 is what RabbitMQ 4 does by default; set here so that 3.10 does the same.
DELIVERY_LIMIT: Final = 20

# The same for a dead queue, where every look at a message is a delivery: RabbitMQ 4 would drop it
# at the 21st. -1, which is no limit from 4.0 on, makes 3.10 drop it at the first.
DEAD_QUEUE_DELIVERY_LIMIT: Final = 1_000_000


class QueueType(StrEnum):
    """How RabbitMQ keeps a queue; `classic` gives up at-least-once dead-lettering."""

    QUORUM = "quorum"
    CLASSIC = "classic"


@dataclass(frozen=True, slots=True)
class Tier:
    """One retry delay. `seconds` is its TTL, `name` how it reads in a queue's name."""

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


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: str = "topic"


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue with the arguments it is declared with."""

    name: str
    arguments: Mapping[str, str | int] = field(default_factory=dict)
    routes_to: str | None = None  # the queue its dead letters go to, for the picture


@dataclass(frozen=True, slots=True)
class Binding:
    """Messages of `exchange` whose routing key matches `routing_key` go to `queue`."""

    exchange: str
    queue: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class WorkQueue:
    """A queue that a service consumes, with its tiers and its dead queue."""

    name: str
    bindings: tuple[tuple[str, str], ...] = ()  # (exchange, routing key)
    tiers: tuple[Tier, ...] = TIERS


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything there is to declare."""

    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[Binding, ...]

    def only(self, work_queues: Iterable[str]) -> "Topology":
        """The part that the services of these work queues need: every exchange, their queues."""
        names = tuple(work_queues)
        wanted = tuple(q for q in self.queues if work_queue_of(q.name) in names)
        return Topology(
            self.exchanges,
            wanted,
            tuple(b for b in self.bindings if b.queue in {q.name for q in wanted}),
        )


# Routing keys of the exchange `schedules`.
SCHEDULE, CANCEL, RESCHEDULE = "schedule", "cancel", "reschedule"
# The routing keys of the exchanges `postings` and `user_events`.
POSTING_KEY: Final = "posting"
USER_EVENT_KEY: Final = "user_event"

EXCHANGES: Final = tuple(
    Exchange(name) for name in (OUTCOMES, SCHEDULES, EVENTS, POSTINGS, USER_EVENTS)
)
WORK_QUEUES: Final = (
    WorkQueue(CALLBACKS),
    WorkQueue(SCHEDULES, tuple((SCHEDULES, key) for key in (SCHEDULE, CANCEL, RESCHEDULE))),
    WorkQueue(SCHEDULER_OUTCOMES, ((OUTCOMES, "callback.*.scheduler"),)),
    WorkQueue(EVENTS, ((EVENTS, "#"),)),
    WorkQueue(POSTINGS, ((POSTINGS, POSTING_KEY),)),
    WorkQueue(USER_EVENTS, ((USER_EVENTS, USER_EVENT_KEY),)),
    *(WorkQueue(channel.queue) for channel in CHANNELS.values()),
    WorkQueue(
        MAILINGS_OUTCOMES,
        tuple((OUTCOMES, f"message.{what}") for what in ("sent", "failed", "expired")),
    ),
)
# Queues of requests, answered directly and dropped when nobody waits any more: no tiers, no dead
# queue, and nothing that a classic queue would not do.
REQUEST_QUEUES: Final = (SCHEDULER_REQUESTS, MAILINGS_REQUESTS)


def tier_queue(work_queue: str, tier: Tier) -> str:
    """The name of the queue that holds messages of `work_queue` for `tier`."""
    return f"{work_queue}.retry.{tier.name}"


def dead_queue(work_queue: str) -> str:
    """The name of the queue that keeps what could not be delivered from `work_queue`."""
    return f"{work_queue}.dead"


def work_queue_of(queue: str) -> str:
    """The work queue that a tier or dead queue belongs to; a work queue is its own."""
    return queue.split(".retry.", maxsplit=1)[0].removesuffix(".dead")


def topology(queue_type: QueueType = QueueType.QUORUM) -> Topology:
    """The whole topology of Ringback, for quorum queues or, by setting, classic ones."""
    return Topology(
        EXCHANGES,
        (
            *(queue for work in WORK_QUEUES for queue in _queues(work, queue_type)),
            *(Queue(name, {"x-queue-type": QueueType.CLASSIC.value}) for name in REQUEST_QUEUES),
        ),
        tuple(Binding(ex, work.name, key) for work in WORK_QUEUES for ex, key in work.bindings),
    )


def _queues(work: WorkQueue, queue_type: QueueType) -> Iterator[Queue]:
    base: dict[str, str | int] = {"x-queue-type": queue_type.value}
    lettering: dict[str, str | int] = {"x-dead-letter-exchange": ""}
    limit: dict[str, str | int] = {}
    looks: dict[str, str | int] = {}
    if queue_type is QueueType.QUORUM:
        lettering |= {
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        limit = {"x-delivery-limit": DELIVERY_LIMIT}
        looks = {"x-delivery-limit": DEAD_QUEUE_DELIVERY_LIMIT}
    dead = dead_queue(work.name)
    yield Queue(
        work.name, base | lettering | limit | {"x-dead-letter-routing-key": dead}, routes_to=dead
    )
    for tier in work.tiers:
        yield Queue(
            tier_queue(work.name, tier),
            base
            | lettering
            | {"x-dead-letter-routing-key": work.name, "x-message-ttl": tier.seconds * 1000},
            routes_to=work.name,
        )
    yield Queue(dead, base | looks)
