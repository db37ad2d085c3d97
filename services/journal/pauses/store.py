"""The table of paused targets. All methods raise StoreConnectionLostError."""

from typing import Final

from shared.contracts.controls import MAX_PAUSED, PausedTargets
from shared.errors import RingbackError
from shared.postgres.pool import Database
from shared.postgres.queries import queries

_SQL: Final = queries("services.journal", "pauses.sql")


class TooManyPausedError(RingbackError):
    """No more targets can be paused."""


class PausedTargetStore:
    """Pauses and resumes targets. Each change has a higher version than those before it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def current(self) -> PausedTargets:
        """Return the whole list."""
        row = await self._database.fetchrow(_SQL["current"])
        return PausedTargets(version=row["version"], targets=row["targets"])

    async def pause(self, target: str, actor: str | None) -> bool:
        """Pause a target, and return whether it was not paused before.

        Raises:
            TooManyPausedError: MAX_PAUSED targets are paused.
        """
        async with self._database.transaction() as connection:
            await connection.execute(_SQL["advance"])
            if await connection.execute(_SQL["pause"], target, actor) == "INSERT 0 0":
                return False
            if await connection.fetchval(_SQL["count"]) > MAX_PAUSED:
                raise TooManyPausedError(f"{MAX_PAUSED} targets are paused; resume one first")
            return True

    async def resume(self, target: str) -> bool:
        """Resume a target, and return whether it was paused."""
        async with self._database.transaction() as connection:
            await connection.execute(_SQL["advance"])
            status: str = await connection.execute(_SQL["resume"], target)
            return status != "DELETE 0"
