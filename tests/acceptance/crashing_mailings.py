"""Mailings, killed with SIGKILL at one exact point between the creation and the start of a mailing.

`python -m tests.acceptance.crashing_mailings POINT` runs the real service with collaborators that
kill the process when it first reaches the point.
"""

import sys
from typing import Final
from uuid import UUID

from services.mailings import app
from services.mailings.campaigns.cohorts import TimeZones
from services.mailings.campaigns.partners import Partners
from services.mailings.campaigns.records import NewRow, StoredMailing
from services.mailings.campaigns.store import Campaigns
from shared.process.run import Parts, serve
from shared.settings import Settings, load
from tests.acceptance.crashing import die

POINTS: Final = (
    "before the creation",
    "after the creation",
    "before the request",
    "after the request",
    "before the start",
    "after the start",
)


def reach(point: str) -> None:
    """Die if the command line names this point."""
    if sys.argv[1:] == [point]:
        die()


class CrashingCampaigns(Campaigns):
    """The store, with points before and after its writes."""

    async def create(
        self, new: NewRow, known: TimeZones | None = None, *, draft: bool
    ) -> StoredMailing | None:
        reach("before the creation")
        created = await super().create(new, known, draft=draft)
        reach("after the creation")
        return created

    async def start_if_due(self, id_: UUID, known: TimeZones | None = None) -> StoredMailing | None:
        found = await self.get(id_)
        if found is not None and found.is_start_requested:
            reach("before the start")
        started = await super().start_if_due(id_, known)
        if started is not None:
            reach("after the start")
        return started


class CrashingPartners(Partners):
    """The requests to the scheduler, with a point before and after one."""

    async def request_start(self, mailing: StoredMailing) -> None:
        reach("before the request")
        await super().request_start(mailing)
        reach("after the request")


if __name__ == "__main__":
    setattr(app, "Campaigns", CrashingCampaigns)  # noqa: B010 - app only imports the name
    setattr(app, "Partners", CrashingPartners)  # noqa: B010 - as above
    sys.exit(serve("mailings", app.start, load(Settings), Parts(metrics_port=0)))
