"""The broker's confirms of what one channel publishes, and whether they stay away."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, Generic, TypeVar

from shared.amqp.flow_control import FlowControl
from shared.amqp.frame_interceptor import InterceptedChannel

# Seconds without a confirm after which a publish counts as unknown (row 2 of the fault table).
CONFIRM_TIMEOUT: Final = 5.0
# Seconds between checks for overdue confirms.
CHECK_INTERVAL: Final = 0.5
# Seconds after which a channel is replaced if one queue confirms nothing, although others do. Such
# a queue may have no majority, and then the replacement only repeats what waits for confirms.
REPLACE_INTERVAL: Final = 60.0
# Seconds for which a queue refuses all publishes of a channel before the channel is replaced. A new
# leader is elected by then. A queue can also be full, so this happens once in REPLACE_INTERVAL.
REFUSAL_TIMEOUT: Final = 5.0
# Routing keys that are remembered. Those of notifications are chosen by clients.
MAX_KEYS: Final = 1000

P = TypeVar("P")
S = TypeVar("S")


@dataclass(slots=True)
class Replacements:
    """When a client last replaced a channel because everything for a queue was refused."""

    last: float = float("-inf")


class Confirms(Generic[P]):
    """The publishes of one channel that the broker has neither confirmed nor refused.

    `confirmed` is called with a publish and whether the broker accepted it. `overdue` is called
    with one that has no confirm after 5 s, and is forgotten. `replacements` outlives the channel.
    """

    def __init__(
        self,
        channel: InterceptedChannel,
        replacements: Replacements,
        *,
        confirmed: Callable[[P, bool], None],
        overdue: Callable[[P], None],
    ) -> None:
        self._channel = channel
        self._confirmed = confirmed
        self._overdue = overdue
        self._replacements = replacements
        # Deadline, routing key and publish, ascending by tag.
        self._sent: dict[int, tuple[float, str, P]] = {}
        self._accepting: set[str] = set()
        self._refused_since: dict[str, float] = {}  # for keys that were never accepted
        self._last_tag = 0
        self._loop = asyncio.get_running_loop()
        self._opened_at = self._confirmed_at = self._loop.time()
        channel.on_confirm = self._on_confirm

    def send(self, frames: bytes, routing_key: str, publish: P) -> None:
        """Write the frames of one publish."""
        self._last_tag += 1
        self._sent[self._last_tag] = (self._loop.time() + CONFIRM_TIMEOUT, routing_key, publish)
        self._channel.write(frames)

    def unconfirmed(self) -> list[P]:
        """Return the publishes without a confirm, oldest first."""
        return [publish for _, _, publish in self._sent.values()]

    async def watch(self, flow: FlowControl[S]) -> None:
        """Report overdue publishes until cancelled.

        Raises:
            ConnectionResetError: the channel must be replaced. After the death of a queue's leader,
                RabbitMQ 3.10.8 may ignore what an open channel publishes to that queue. A channel
                that first publishes to it just then may be refused until the node returns.
        """
        while True:
            await asyncio.sleep(CHECK_INTERVAL)
            now = self._loop.time()
            if flow.session is None:  # the broker reads no publish until the alarm ends
                deadline = now + CONFIRM_TIMEOUT
                self._sent.update({tag: (deadline, *s[1:]) for tag, s in self._sent.items()})
                continue
            if self._report_overdue(now):
                if now - self._confirmed_at >= CONFIRM_TIMEOUT:
                    raise ConnectionResetError("the broker confirms nothing")
                if now - self._opened_at >= REPLACE_INTERVAL:
                    raise ConnectionResetError("a queue confirms nothing")
            refused_since = min(self._refused_since.values(), default=now)
            may_replace = now - self._replacements.last >= REPLACE_INTERVAL
            if now - refused_since >= REFUSAL_TIMEOUT and may_replace:
                self._replacements.last = now
                raise ConnectionResetError("a queue has refused everything")

    def _report_overdue(self, now: float) -> bool:
        overdue = list(takewhile(lambda tag: self._sent[tag][0] <= now, self._sent))
        for tag in overdue:
            self._overdue(self._sent.pop(tag)[2])
        return bool(overdue)

    def _on_confirm(self, tag: int, multiple: bool, accepted: bool) -> None:  # noqa: FBT001 - as called
        self._confirmed_at = self._loop.time()
        tags = list(takewhile(lambda each: each <= tag, self._sent)) if multiple else [tag]
        for each in tags:
            sent = self._sent.pop(each, None)
            if sent is not None:
                _, routing_key, publish = sent
                if routing_key not in self._accepting:
                    self._note(routing_key, accepted=accepted)
                self._confirmed(publish, accepted)

    def _note(self, routing_key: str, *, accepted: bool) -> None:
        """Remember that the first publish was accepted, or that all of them were refused."""
        if accepted:
            if len(self._accepting) >= MAX_KEYS:
                self._accepting.clear()
            self._accepting.add(routing_key)
            self._refused_since.pop(routing_key, None)
        elif len(self._refused_since) < MAX_KEYS:
            self._refused_since.setdefault(routing_key, self._loop.time())
