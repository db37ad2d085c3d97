"""The ledger of the fault tests: each accepted id is delivered or dead-lettered, never lost."""

import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from tests.fakes.broker_client import broker_client, identities
from tests.fakes.receivers import Receiver
from tests.fakes.waiting import until


@dataclass(slots=True)
class Ledger:
    """The fate of each accepted id, read from the receivers and the dead-letter queue."""

    amqp_url: str
    receivers: tuple[Receiver, ...]
    accepted: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)

    def accept(self, ids: Iterable[str]) -> None:
        """Record ids whose publishing the broker confirmed."""
        self.accepted.update(ids)

    @property
    def delivered(self) -> Counter[str]:
        """Return how often each id reached a receiver."""
        return Counter(
            request.headers["webhook-id"]
            for receiver in self.receivers
            for request in receiver.requests
        )

    async def pending(self) -> set[str]:
        """Return ids that are neither delivered nor dead-lettered: in flight or lost."""
        missing = self.accepted - self.delivered.keys() - self.dead
        if missing:
            async with broker_client(self.amqp_url) as reader:
                for dead_letter in await reader.read_dead_letters():
                    self.dead |= identities(dead_letter)
        return missing - self.dead

    async def complete(self, within: float = 60.0) -> None:
        """Wait until every accepted id is delivered or dead-lettered; the rest is lost."""
        deadline = time.monotonic() + within
        while missing := await self.pending():
            remaining = deadline - time.monotonic()
            assert remaining > 0, f"{len(missing)} of {len(self.accepted)} are lost: {missing}"
            # A look at the dead-letter queue is expensive, one at the receivers cheap.
            with suppress(AssertionError):
                await until(lambda: self.accepted <= self.delivered.keys(), min(remaining, 1.0))

    @property
    def repeats(self) -> int:
        """Return how many deliveries were repeats."""
        return sum(self.delivered.values()) - len(self.delivered)
