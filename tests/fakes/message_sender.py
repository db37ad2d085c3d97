"""A `MessageSender` with a provider, claims, stops and a clock that the test controls."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from services.delivery.claims import Claim
from services.delivery.domain import Limits, WithheldError
from services.delivery.handlers import ChannelSender, Check, Handled, MessageSender, Sent
from services.delivery.provider import Provider
from shared.amqp.codec import Properties
from shared.amqp.message import Message
from shared.contracts.message_facts import ReasonCode
from shared.contracts.messages import SendEmail
from shared.errors import InfrastructureError
from shared.resilience.lanes import Breaker

CANARY = "c4n4ry"
OF_MAILING = {"mailing_id": "m-1", "recipient_id": "r-1"}
NOW = 1_800_000_000.0
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Clock:
    """A clock that stands still unless the test moves it."""

    at = NOW

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


def email(**fields: Any) -> SendEmail:
    """Make an e-mail whose contents must not be logged."""
    body = {"to": f"{CANARY}@x.org", "subject": CANARY, "text": CANARY, "posting_id": "p-1"}
    return SendEmail.model_validate(body | {"user_id": "u-1"} | fields)


def message(message_id: str = "id-1") -> Message:
    """Make the second attempt of a message with a trace."""
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    return Message(message_id, Properties(headers=headers), b"", 2, first_at=NOW)


def expiry(seconds: float) -> datetime:
    """Return the time so many seconds after `NOW`."""
    return datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=seconds)


class Claims:
    """Claims of the only process; `expired` is whether another one could have taken them over."""

    expired = False

    def __init__(self) -> None:
        self.recorded: dict[UUID, float] = {}
        self.released: list[UUID] = []

    async def claim(self, id_: UUID) -> Claim:
        return Claim(id_, 1, self.recorded.get(id_))

    def check(self, _: Claim) -> None:
        if self.expired:
            raise InfrastructureError("the claim of the message has expired")

    async def record(self, claim: Claim, duration: float, recorded: Callable[[], None]) -> None:
        self.recorded[claim.id] = duration
        recorded()

    def release(self, claim: Claim) -> None:
        self.released.append(claim.id)


class Stops:
    """The stops of mailings; `stopped` are those that are stopped."""

    def __init__(self) -> None:
        self.stopped: set[str] = set()

    async def check(self, mailing_id: str) -> None:
        if mailing_id in self.stopped:
            raise WithheldError("stopped", ReasonCode.STOPPED)


class Setup:
    """A provider whose responses the test chooses, and a `MessageSender` that uses it."""

    def __init__(self, *, concurrency: int = 10, max_failures: int = 3) -> None:
        self.clock = Clock()
        self.changes: list[Breaker] = []
        self.accepted: list[str] = []
        self.respond: Callable[[], Awaitable[None]] = self.accept
        self.claims = Claims()
        self.stops = Stops()
        self.sender: MessageSender[SendEmail] = MessageSender(
            "email",
            ChannelSender("smtp://x:25", Limits(concurrency, None), self._send),
            Provider(
                "smtp://x:25",
                concurrency=concurrency,
                take_tokens=None,
                max_failures=max_failures,
                clock=self.clock.now,
                observe=lambda _, breaker, __: self.changes.append(breaker),
            ),
            self.claims,  # type: ignore[arg-type]
            self.stops,  # type: ignore[arg-type]
            self.clock,
        )

    async def _send(self, message_id: str, _: SendEmail, check: Check) -> int:
        await self.respond()
        await check()
        self.accepted.append(message_id)
        return 250

    async def accept(self) -> None:
        """Respond at once."""

    def fail(self, *errors: Exception) -> None:
        """Fail attempts with these errors in turn, and all later ones with the last."""
        left = list(errors)

        async def respond() -> None:
            raise left.pop(0) if len(left) > 1 else left[0]

        self.respond = respond

    async def handle(self, message_id: str = "id-1", **fields: Any) -> Sent:
        """Let the sender handle a message that is sent."""
        sent = await self.offer(message_id, **fields)
        assert isinstance(sent, Sent)
        return sent

    async def offer(self, message_id: str = "id-1", **fields: Any) -> Handled:
        """Let the sender handle a message."""
        return await self.sender.handle("bulk", message(message_id), email(**fields))
