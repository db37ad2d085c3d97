"""What came, in memory and bounded: mailboxes with their orders and counters, and deliveries."""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from services.sandbox.domain import Keys, Verdict
from services.sandbox.memory import Tally, Told
from services.sandbox.orders import Behaviour, Order

KEPT_DELIVERIES = 1000
KEPT_BYTES = 16 * 1024
"""Bytes kept of a body, and of the headers, of one delivery: 32 MB over all deliveries."""
KEPT_MAILBOXES = 1000


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook as it came, what was found, and the answer it gets."""

    number: int
    received_at: float
    """Unix time in seconds."""
    mailbox: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    """The first ``KEPT_BYTES`` of it."""
    body_size: int
    webhook_id: str | None
    try_number: int | None
    """Which request this is with this ``webhook_id``; the first is 1."""
    verdict: Verdict
    status: int | None
    """The status answered; None if the behaviour never completes an answer."""
    behaviour: str | None


@dataclass(slots=True)
class Mailbox:
    """One receiver: its order and its counters, which go on when deliveries are dropped."""

    name: str
    order: Order = field(default_factory=Order)
    keys: tuple[Keys, ...] = ()
    received: int = 0
    verified: int = 0
    tries: Tally = field(default_factory=Tally)
    told: Told[Behaviour] = field(default_factory=Told)

    def __post_init__(self) -> None:
        self.obey(self.order)

    def obey(self, order: Order) -> None:
        """Take an order; its ``times`` begin to count."""
        self.order = order
        self.keys = tuple(Keys.of(secret.get_secret_value()) for secret in order.secrets)
        self.told = Told(order.behaviour, order.times)

    def behaviour_for(self, webhook_id: str | None) -> Behaviour | None:
        """Return the behaviour for one more request, and count it; None once it is spent."""
        return self.told.meet((webhook_id or "") if self.order.per == "id" else "")

    @property
    def times_left(self) -> int | None:
        """How many more requests the behaviour lasts; None if that is not one number."""
        return None if self.order.per == "id" else self.told.left()


class Store:
    """The mailboxes, each made on first use, and the last ``KEPT_DELIVERIES`` deliveries.

    Beyond ``KEPT_MAILBOXES`` the one that was not used for longest goes, with its order.
    """

    def __init__(self) -> None:
        self.mailboxes: dict[str, Mailbox] = {}
        self._deliveries: deque[Delivery] = deque(maxlen=KEPT_DELIVERIES)
        self._numbered = 0
        self._arrival = asyncio.Event()

    def mailbox(self, name: str) -> Mailbox:
        """Return the mailbox of that name, made if it is new."""
        box = self.mailboxes.pop(name) if name in self.mailboxes else Mailbox(name)
        self.mailboxes[name] = box
        if len(self.mailboxes) > KEPT_MAILBOXES:
            del self.mailboxes[next(iter(self.mailboxes))]
        return box

    def next_number(self) -> int:
        """Return the number of the next delivery; they rise and are never used twice."""
        self._numbered += 1
        return self._numbered

    def keep(self, delivery: Delivery) -> None:
        """Keep a delivery, dropping the oldest if there are too many, and wake who waits."""
        self._deliveries.append(delivery)
        self._arrival.set()
        self._arrival.clear()

    def deliveries(
        self, mailbox: str | None = None, webhook_id: str | None = None
    ) -> Iterator[Delivery]:
        """Iterate over the kept deliveries, newest first."""
        for delivery in reversed(self._deliveries):
            if mailbox in (None, delivery.mailbox) and webhook_id in (None, delivery.webhook_id):
                yield delivery

    def count(self, mailbox: str, webhook_id: str | None) -> int:
        """Return how many webhooks came to a mailbox, or with that id, kept or not."""
        if mailbox not in self.mailboxes:
            return 0
        box = self.mailboxes[mailbox]
        return box.received if webhook_id is None else box.tries[webhook_id]

    async def wait(self, mailbox: str, webhook_id: str | None, count: int) -> None:
        """Return as soon as :meth:`count` has reached ``count``."""
        while self.count(mailbox, webhook_id) < count:
            await self._arrival.wait()

    def forget(self, mailbox: str | None) -> None:
        """Forget the deliveries and counters of a mailbox, or of all; their orders stay."""
        kept = [d for d in self._deliveries if mailbox not in (None, d.mailbox)]
        self._deliveries = deque(kept, maxlen=KEPT_DELIVERIES)
        for box in self.mailboxes.values():
            if mailbox in (None, box.name):
                box.received = box.verified = 0
                box.tries = Tally()

    def remove(self, mailbox: str) -> None:
        """Make a mailbox as if it had never been used: order, counters and deliveries."""
        self.forget(mailbox)
        self.mailboxes.pop(mailbox, None)
