"""The time zones of a mailing's clients, which begin at different times."""

from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from services.mailings.campaigns.records import StoredMailing, hours_of
from services.mailings.campaigns.windows import current_or_next
from shared.contracts.mailings import ClientFilter
from shared.contracts.schedules import time_zone

T = TypeVar("T")


class TimeZones(NamedTuple):
    """The time zones of the clients of an owner that a filter matches."""

    owner: str
    filter: ClientFilter
    zones: Collection[str]


class TimeZonesUnknownError(Exception):
    """A mailing with local hours is to start: read the time zones of its clients first."""

    def __init__(self, mailing: StoredMailing) -> None:
        super().__init__()
        self.mailing = mailing


def openings(
    mailing: StoredMailing, now: datetime, known: TimeZones | None
) -> dict[str | None, datetime]:
    """Return when each time zone of a mailing's clients opens; without local hours: all, now.

    Raises:
        TimeZonesUnknownError: the known time zones are not those of its clients.
    """
    hours = hours_of(mailing.content)
    if hours is None:
        return {None: now}
    if known is None or (known.owner, known.filter) != (mailing.client_id, mailing.content.filter):
        raise TimeZonesUnknownError(mailing)
    return {
        zone: max(current_or_next(hours, time_zone(zone), now).opens, now)
        for zone in sorted(known.zones)
    }


async def with_time_zones(
    change: Callable[[TimeZones | None], Awaitable[T]],
    read: Callable[[StoredMailing], Awaitable[TimeZones]],
    *,
    changes: AbstractAsyncContextManager[Any],
    reads: AbstractAsyncContextManager[Any],
) -> T:
    """Return what `change` returns. It runs once more if it needs the time zones of clients.

    They are read between two transactions, so that nothing is locked meanwhile. `changes` and
    `reads` limit how many of each run at a time.
    """
    known = None
    while True:
        try:
            async with changes:
                return await change(known)
        except TimeZonesUnknownError as error:
            async with reads:
                known = await read(error.mailing)
