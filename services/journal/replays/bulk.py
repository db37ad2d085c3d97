"""The work of a replay of everything that matches: batches in the order of the entries.

The matching callbacks are those of the journal's entries up to the start of the job, which never
change. A batch is published and confirmed, then the place after it is saved with the counts. So a
kill repeats at most one batch, of at most 100 callbacks, under the same ids. The counts are exact.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from services.journal.jobs.store import ClaimedJob, Jobs
from services.journal.jobs.worker import Step
from services.journal.replays.sending import Order, ReplaySender
from services.journal.replays.store import Place, Replays, Selection
from shared.contracts.journal import Filter
from shared.errors import PermanentError
from shared.postgres.pool import Database
from shared.security.encryption import DecryptionError, SecretCipher

# Searches of one step, so that a cancel takes effect within a second.
MAX_WINDOWS: Final = 20


@dataclass(frozen=True, slots=True)
class Progress:
    """What a job saves: the selection without its filter, and the place of the next batch.

    place: None at the end.
    """

    failed: bool
    client_id: str | None
    horizon: int
    place: Place | None

    @classmethod
    def of(cls, selection: Selection) -> "Progress":
        """Return the progress at the start."""
        return cls(selection.failed, selection.client_id, selection.horizon, selection.start)

    @classmethod
    def parse(cls, saved: Mapping[str, Any]) -> "Progress":
        """Return the progress that `as_json` saved."""
        place = saved["place"]
        return cls(
            saved["failed"],
            saved["client_id"],
            saved["horizon"],
            None if place is None else (datetime.fromisoformat(place[0]), place[1]),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the progress as JSON values."""
        place = None if self.place is None else [self.place[0].isoformat(), self.place[1]]
        return {
            "failed": self.failed,
            "client_id": self.client_id,
            "horizon": self.horizon,
            "place": place,
        }

    def selection(self, chosen: Filter) -> Selection:
        """Return the selection of the job with this filter."""
        return Selection(chosen, self.failed, self.client_id, self.horizon)


class BulkReplay:
    """Works on replay jobs."""

    def __init__(
        self,
        database: Database,
        replays: Replays,
        sender: ReplaySender,
        jobs: Jobs,
        cipher: SecretCipher | None,
    ) -> None:
        self._database = database
        self._replays = replays
        self._sender = sender
        self._jobs = jobs
        self._cipher = cipher

    @asynccontextmanager
    async def work(self, claimed: ClaimedJob) -> AsyncIterator[Step]:
        """Yield the step of a job."""
        job = claimed.job
        # Not the claim's: the work may be opened again, after a lost connection.
        stored = await self._jobs.get(job.id)
        progress = Progress.parse(job.cursor if stored is None else stored.cursor)
        order = Order(str(job.id), job.actor, self._url(job.url))
        selection = progress.selection(job.filter)

        async def step(limit: int) -> int | None:
            nonlocal progress
            for _ in range(MAX_WINDOWS):
                if progress.place is None:
                    return None
                matches = await self._replays.matching(selection, progress.place, limit)
                after = replace(progress, place=matches.next)
                faults: list[str | None] = []
                if matches.found:
                    faults = await self._sender.send(matches.found, order)
                failed = sum(fault is not None for fault in faults)
                async with self._database.transaction() as connection:
                    await self._jobs.advance(
                        connection,
                        job,
                        done=len(faults) - failed,
                        failed=failed,
                        cursor=after.as_json(),
                    )
                progress = after
                if faults:
                    return len(faults)
            return 0

        yield step

    def _url(self, sealed: bytes | None) -> str | None:
        if sealed is None:
            return None
        try:
            if self._cipher is not None:
                return self._cipher.decrypt(sealed).decode()
        except DecryptionError as error:
            raise PermanentError(f"Cannot read the URL: {error}.") from None
        raise PermanentError("Cannot read the URL: RINGBACK_SECRETS_KEY is not set.")
