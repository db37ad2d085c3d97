"""The database's clock, estimated between two statements."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic


class DatabaseClock:
    """The last time read from the database, advanced by this machine's monotonic clock.

    A jump of this machine's clock has no effect. A jump of the database's clock is noticed with
    the next statement. Use it for wake-ups and input bounds; only the database decides what is due.
    """

    def __init__(self, steady: Callable[[], float] = monotonic) -> None:
        self._steady = steady
        self._offset: float | None = None  # seconds that the database is ahead of `steady`
        self._first_sync = asyncio.Event()

    @property
    def synced(self) -> bool:
        """Whether a time was read from the database."""
        return self._offset is not None

    async def wait_synced(self) -> None:
        """Wait until a time was read from the database."""
        await self._first_sync.wait()

    def start(self) -> float:
        """Return the start of a statement, for `sync`."""
        return self._steady()

    def sync(self, now: datetime, started: float) -> None:
        """Use a time that the database returned to a statement sent at `started`."""
        self._offset = now.timestamp() - (started + self._steady()) / 2
        self._first_sync.set()

    def now(self) -> datetime:
        """Return the current time. Call it after the first `sync`."""
        assert self._offset is not None  # noqa: S101 - callers await `wait_synced`
        return datetime.fromtimestamp(self._steady() + self._offset, UTC)

    def seconds_until(self, at: datetime) -> float:
        """Return the seconds from now until a time; negative if it has passed."""
        assert self._offset is not None  # noqa: S101 - callers await `wait_synced`
        return at.timestamp() - self._offset - self._steady()
