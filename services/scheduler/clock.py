"""What time it is at the database, between two statements that tell."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic


class DatabaseClock:
    """The database's time, as heard last and carried on by the machine's monotonic clock.

    So a jump of this machine's clock changes nothing, and one of the database's is heard of with
    the next statement. Good for waking up and for bounds; what is due is the database's to say.
    """

    def __init__(self, steady: Callable[[], float] = monotonic) -> None:
        self._steady = steady
        self._ahead: float | None = None  # of the steady clock, in seconds
        self._first = asyncio.Event()

    @property
    def heard(self) -> bool:
        """Whether it has been heard at all."""
        return self._ahead is not None

    async def known(self) -> None:
        """Wait until it has been heard for the first time."""
        await self._first.wait()

    def sent(self) -> float:
        """Note when a statement is sent, for `hear`."""
        return self._steady()

    def hear(self, now: datetime, sent: float) -> None:
        """The database said so, in answer to a statement sent then."""
        self._ahead = now.timestamp() - (sent + self._steady()) / 2
        self._first.set()

    def now(self) -> datetime:
        """The present moment.

        Raises:
            AssertionError: it was never heard.
        """
        assert self._ahead is not None  # noqa: S101 - `known` comes first
        return datetime.fromtimestamp(self._steady() + self._ahead, UTC)

    def until(self, at: datetime) -> float:
        """Seconds from now to a moment."""
        assert self._ahead is not None  # noqa: S101
        return at.timestamp() - self._ahead - self._steady()
