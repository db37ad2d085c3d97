"""The checker of every trouble test: what was accepted is delivered or dead, never lost."""

import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from tests.fakes.outside import identities, outside
from tests.fakes.receivers import Receiver
from tests.fakes.waiting import until


@dataclass(slots=True)
class Ledger:
    """What became of each accepted id, as receivers and the dead queue show it."""

    amqp_url: str
    receivers: tuple[Receiver, ...]
    accepted: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)

    def accept(self, ids: Iterable[str]) -> None:
        """Note ids whose publishing the broker has confirmed."""
        self.accepted.update(ids)

    @property
    def delivered(self) -> Counter[str]:
        """How often each id reached a receiver."""
        return Counter(
            request.headers["webhook-id"]
            for receiver in self.receivers
            for request in receiver.requests
        )

    async def open(self) -> set[str]:
        """Ids that are neither delivered nor dead: on their way, or lost."""
        missing = self.accepted - self.delivered.keys() - self.dead
        if missing:
            async with outside(self.amqp_url) as reader:
                for letter in await reader.read_dead():
                    self.dead |= identities(letter)
        return missing - self.dead

    async def closed(self, within: float = 60.0) -> None:
        """Wait until every accepted id is delivered or dead; one that stays open is lost."""

        deadline = time.monotonic() + within
        while missing := await self.open():
            left = deadline - time.monotonic()
            assert left > 0, f"{len(missing)} of {len(self.accepted)} are lost: {missing}"
            # Asking the broker is dear, the receivers cheap: the broker is asked once a second.
            with suppress(AssertionError):
                await until(lambda: self.accepted <= self.delivered.keys(), min(left, 1.0))

    @property
    def repeats(self) -> int:
        """How many deliveries were repeats."""
        return sum(self.delivered.values()) - len(self.delivered)
