"""The work of a replay of everything that matches: batches in the order of the entries.

The matching callbacks are those of the journal's entries up to the start of the job, which never
change. A batch is published and confirmed, then the place after it is saved with the counts. So a
kill repeats at most one batch, of at most 100 callbacks, under the same ids. The counts are exact.

If the broker refuses a part of a batch, the other part is saved by its ids, and only the refused
part is sent again. After some tries without a confirm, the job fails and says why.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, TypeGuard

from services.journal.jobs.store import ClaimedJob, Jobs
from services.journal.jobs.tries import check_tries, was_published
from services.journal.jobs.worker import Step
from services.journal.replays.sending import Callback, Order, ReplaySender, Result
from services.journal.replays.store import Place, Replays, Selection
from shared.contracts.journal import Filter
from shared.errors import InfrastructureError, PermanentError
from shared.postgres.pool import Database
from shared.security.encryption import DecryptionError, SecretCipher

# Searches of one step, so that a cancel takes effect within a second.
MAX_WINDOWS: Final = 20


@dataclass(frozen=True, slots=True)
class Progress:
    """What a job saves: the selection without its filter, and the place of the next batch.

    place: None at the end.
    settled: the callbacks of this batch that were sent, or can never be.
    tries: how often in a row the broker has confirmed nothing of this batch.
    """

    failed: bool
    client_id: str | None
    horizon: int
    place: Place | None
    settled: frozenset[str] = frozenset()
    tries: int = 0

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
            frozenset(saved["settled"]),
            saved["tries"],
        )

    def as_json(self) -> dict[str, Any]:
        """Return the progress as JSON values."""
        place = None if self.place is None else [self.place[0].isoformat(), self.place[1]]
        return {
            "failed": self.failed,
            "client_id": self.client_id,
            "horizon": self.horizon,
            "place": place,
            "settled": sorted(self.settled),
            "tries": self.tries,
        }

    def selection(self, chosen: Filter) -> Selection:
        """Return the selection of the job with this filter."""
        return Selection(chosen, self.failed, self.client_id, self.horizon)

    def after(self, results: Mapping[str, Result], place: Place | None) -> "Progress":
        """Return the progress after a try, with the result of each callback that it sent.

        place: that of the next batch.
        """
        settled = {key for key, result in results.items() if not _is_unsent(result)}
        if len(settled) == len(results):
            return replace(self, place=place, settled=frozenset(), tries=0)
        tries = 0 if settled else self.tries + any(map(was_published, results.values()))
        return replace(self, settled=self.settled | settled, tries=tries)


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
                if (place := progress.place) is None:
                    return None
                matches = await self._replays.matching(selection, place, limit)
                waiting = [each for each in matches.found if _key(each) not in progress.settled]
                results: dict[str, Result] = {}
                if waiting:
                    sent = await self._sender.send_each(waiting, order)
                    results = dict(zip(map(_key, waiting), sent, strict=True))
                progress = progress.after(results, matches.next)
                failed = sum(isinstance(result, str) for result in results.values())
                async with self._database.transaction() as connection:
                    await self._jobs.advance(
                        connection,
                        job,
                        done=sum(result is None for result in results.values()),
                        failed=failed,
                        cursor=progress.as_json(),
                    )
                if (error := next(filter(_is_unsent, results.values()), None)) is not None:
                    check_tries(
                        progress.tries, error, action="send callbacks again", advice=_advice(place)
                    )
                    raise error
                if results:
                    return len(results)
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


def _key(callback: Callback) -> str:
    """Return what identifies a callback in a batch, as JSON can store it."""
    return f"{callback.callback_id}\n{callback.client_id}\n{callback.reference}"


def _is_unsent(result: Result) -> TypeGuard[InfrastructureError]:
    return isinstance(result, InfrastructureError)


def _advice(place: Place) -> str:
    return f"When the queue accepts messages, start a job with `since` {place[0].isoformat()}."
