"""Sends callbacks again: publishes kept requests, and reports them as facts."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from services.journal.replays import domain
from services.journal.replays.domain import NotReplayableError, Replay, Ticket
from shared.amqp.fact_sender import FactSender
from shared.amqp.publisher import Publisher, UnpublishableError
from shared.clock import Clock
from shared.contracts.journal_facts import CallbackReplayed
from shared.errors import InfrastructureError
from shared.security.encryption import SecretCipher

# What became of a callback: None if it was sent, a text if it can never be sent, and an error if
# the broker has not confirmed it.
Result = str | InfrastructureError | None


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
    """Publishes kept requests to the queue `callbacks`.

    tickets: returns Ringback's ticket for a client, None if it signs none.
    """

    def __init__(
        self,
        publisher: Publisher,
        facts: FactSender,
        cipher: SecretCipher | None,
        clock: Clock,
        tickets: Callable[[str], Ticket | None],
    ) -> None:
        self._publisher = publisher
        self._facts = facts
        self._cipher = cipher
        self._clock = clock
        self._tickets = tickets

    async def send(self, callbacks: Sequence[Callback], order: Order) -> list[str | None]:
        """Send callbacks again, and return for each why it cannot be sent, or None.

        Raises:
            InfrastructureError: the broker is unavailable. Some may have been sent.
        """
        faults: list[str | None] = []
        for result in await self.send_each(callbacks, order):
            if isinstance(result, InfrastructureError):
                raise result
            faults.append(result)
        return faults

    async def send_each(self, callbacks: Sequence[Callback], order: Order) -> list[Result]:
        """Send callbacks again, and return what became of each.

        Those that were sent are confirmed on return, and so are the facts about them.
        """
        results: list[Result] = []
        sending: list[asyncio.Future[None]] = []
        facts: list[CallbackReplayed] = []
        places: list[int] = []
        for callback in callbacks:
            results.append(None)
            try:
                replay = self._replay(callback, order)
                sending.append(self._publisher.publish(replay.message))
            except (NotReplayableError, UnpublishableError) as error:
                results[-1] = str(error)
                continue
            facts.append(self._fact(callback, replay, order))
            places.append(len(results) - 1)
        sent = []
        answers = await asyncio.gather(*sending, return_exceptions=True)
        for place, fact, answer in zip(places, facts, answers, strict=True):
            if answer is None:
                sent.append(fact)
            elif isinstance(answer, InfrastructureError):
                results[place] = answer
            else:
                raise answer
        await self._facts.send_confirmed(sent)
        return results

    def _replay(self, callback: Callback, order: Order) -> Replay:
        if callback.sealed is None:
            raise NotReplayableError("its request is not kept")
        return domain.replay(
            domain.opened(self._cipher, callback.sealed),
            client_id=callback.client_id,
            replay_id=order.replay_id,
            reference=callback.reference,
            url=order.url,
            ticket=self._tickets(callback.client_id) if callback.client_id else None,
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
