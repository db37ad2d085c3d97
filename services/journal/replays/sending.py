"""Sends callbacks again: publishes kept requests, and reports them as facts."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from services.journal.replays import domain
from services.journal.replays.domain import NotReplayableError, Replay
from shared.amqp.fact_sender import FactSender
from shared.amqp.publisher import Publisher
from shared.clock import Clock
from shared.contracts.journal_facts import CallbackReplayed
from shared.security.encryption import SecretCipher


@dataclass(frozen=True, slots=True)
class Order:
    """What a replay is: its id, who is responsible, the other URL if any, and its trace context."""

    replay_id: str
    actor: str | None
    url: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Callback:
    """A callback to send again. `client_id` '' is the anonymous client.

    sealed: its kept request, None if it is not kept.
    """

    callback_id: str
    client_id: str
    reference: str
    sealed: bytes | None


class ReplaySender:
    """Publishes kept requests to the queue `callbacks`."""

    def __init__(
        self, publisher: Publisher, facts: FactSender, cipher: SecretCipher | None, clock: Clock
    ) -> None:
        self._publisher = publisher
        self._facts = facts
        self._cipher = cipher
        self._clock = clock

    async def send(self, callbacks: Sequence[Callback], order: Order) -> list[str | None]:
        """Send callbacks again, and return for each why it cannot be sent, or None.

        They are confirmed on return, and so are their facts.

        Raises:
            InfrastructureError: the broker is unavailable. Some may have been sent.
        """
        faults: list[str | None] = []
        messages, facts = [], []
        for callback in callbacks:
            try:
                replay = self._replay(callback, order)
            except NotReplayableError as error:
                faults.append(str(error))
                continue
            faults.append(None)
            messages.append(replay.message)
            facts.append(self._fact(callback, replay, order))
        await self._publisher.publish_all(messages)
        await self._facts.send_confirmed(facts)
        return faults

    def _replay(self, callback: Callback, order: Order) -> Replay:
        if callback.sealed is None:
            raise NotReplayableError("its request is not kept")
        return domain.replay(
            domain.opened(self._cipher, callback.sealed),
            client_id=callback.client_id,
            replay_id=order.replay_id,
            reference=callback.reference,
            url=order.url,
            traceparent=order.traceparent,
        )

    def _fact(self, callback: Callback, replay: Replay, order: Order) -> CallbackReplayed:
        return CallbackReplayed(
            fact_id=f"{order.replay_id}/{callback.callback_id}/{callback.reference}",
            at=datetime.fromtimestamp(self._clock.now(), UTC),
            callback_id=callback.callback_id,
            client_id=callback.client_id or None,
            target=replay.target,
            actor=order.actor,
            replay=order.replay_id,
            trace_id=order.traceparent[3:35] if order.traceparent else None,
        )
