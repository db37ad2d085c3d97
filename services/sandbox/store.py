"""Mailboxes with their settings and counters, and the last deliveries, in bounded memory."""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from services.sandbox.behaviours import Behaviour, MailboxSettings
from services.sandbox.domain import SecretKeys, SignatureCheck
from services.sandbox.memory import BoundedCounter, LimitedBehaviour

MAX_DELIVERIES = 1000
# Bytes stored of a delivery's body, and of its headers: 32 MB for all deliveries.
MAX_STORED_BYTES = 16 * 1024
MAX_MAILBOXES = 1000


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook as received, the result of the signature check, and the response."""

    number: int
    # Unix time in seconds.
    received_at: float
    mailbox: str
    method: str
    path: str
    headers: dict[str, str]
    # The first `MAX_STORED_BYTES` bytes.
    body: bytes
    body_size: int
    webhook_id: str | None
    # The number of this request among those with this `webhook_id`; the first is 1.
    attempt: int | None
    signatures: SignatureCheck
    # The status of the response; None if the behaviour never completes one.
    status: int | None
    behaviour: str | None


@dataclass(slots=True)
class Mailbox:
    """One receiver: its settings and its counters, which also count dropped deliveries."""

    name: str
    settings: MailboxSettings = field(default_factory=MailboxSettings)
    keys: tuple[SecretKeys, ...] = ()
    received: int = 0
    verified: int = 0
    attempts: BoundedCounter = field(default_factory=BoundedCounter)
    behaviour: LimitedBehaviour[Behaviour] = field(default_factory=LimitedBehaviour)

    def __post_init__(self) -> None:
        self.configure(self.settings)

    def configure(self, settings: MailboxSettings) -> None:
        """Replace the settings; `times` counts from now."""
        self.settings = settings
        self.keys = tuple(
            SecretKeys.derive(secret.get_secret_value()) for secret in settings.secrets
        )
        self.behaviour = LimitedBehaviour(settings.behaviour, settings.times)

    def next_behaviour(self, webhook_id: str | None) -> Behaviour | None:
        """Count one more request and return its behaviour; None for the usual response."""
        return self.behaviour.next((webhook_id or "") if self.settings.per == "id" else "")

    @property
    def times_left(self) -> int | None:
        """How many more requests the behaviour affects; None if unlimited or `per` is `id`."""
        return None if self.settings.per == "id" else self.behaviour.remaining()


class Store:
    """The mailboxes, created on first use, and the last `MAX_DELIVERIES` deliveries.

    Beyond `MAX_MAILBOXES`, the least recently used mailbox is dropped, with its settings.
    """

    def __init__(self) -> None:
        self.mailboxes: dict[str, Mailbox] = {}
        self._deliveries: deque[Delivery] = deque(maxlen=MAX_DELIVERIES)
        self._last_number = 0
        self._recorded = asyncio.Event()

    def mailbox(self, name: str) -> Mailbox:
        """Return the mailbox of this name; create it if it is new."""
        box = self.mailboxes.pop(name) if name in self.mailboxes else Mailbox(name)
        self.mailboxes[name] = box
        if len(self.mailboxes) > MAX_MAILBOXES:
            del self.mailboxes[next(iter(self.mailboxes))]
        return box

    def next_number(self) -> int:
        """Return the number of the next delivery. Numbers increase and are never reused."""
        self._last_number += 1
        return self._last_number

    def record(self, delivery: Delivery) -> None:
        """Store a delivery, drop the oldest if there are too many, and wake all waiters."""
        self._deliveries.append(delivery)
        self._recorded.set()
        self._recorded.clear()

    def deliveries(
        self, mailbox: str | None = None, webhook_id: str | None = None
    ) -> Iterator[Delivery]:
        """Iterate over the stored deliveries, newest first."""
        for delivery in reversed(self._deliveries):
            if mailbox in (None, delivery.mailbox) and webhook_id in (None, delivery.webhook_id):
                yield delivery

    def count(self, mailbox: str, webhook_id: str | None) -> int:
        """Return how many webhooks a mailbox received, in total or with this id."""
        if mailbox not in self.mailboxes:
            return 0
        box = self.mailboxes[mailbox]
        return box.received if webhook_id is None else box.attempts[webhook_id]

    async def wait(self, mailbox: str, webhook_id: str | None, count: int) -> None:
        """Return as soon as `count()` has reached `count`."""
        while self.count(mailbox, webhook_id) < count:
            await self._recorded.wait()

    def clear(self, mailbox: str | None) -> None:
        """Delete deliveries and counters of one mailbox, or of all; keep their settings."""
        kept = [d for d in self._deliveries if mailbox not in (None, d.mailbox)]
        self._deliveries = deque(kept, maxlen=MAX_DELIVERIES)
        for box in self.mailboxes.values():
            if mailbox in (None, box.name):
                box.received = box.verified = 0
                box.attempts = BoundedCounter()

    def remove(self, mailbox: str) -> None:
        """Delete a mailbox with its settings, counters and deliveries."""
        self.clear(mailbox)
        self.mailboxes.pop(mailbox, None)
