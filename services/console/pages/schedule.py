"""The schedule: how many callbacks of the selected client are due, by hour and by day."""

import asyncio
from datetime import UTC, datetime

from aiohttp import web

from services.console.due_figures import BEGINNING, day_bounds, due_chart, hour_bounds, total
from services.console.pages.declaration import Page
from services.console.sign_in.roles import Role
from services.console.visit import Visit
from shared.contracts.schedule_requests import COUNT_DUE


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (Page("GET", "/schedule", Role.VIEWER, "Schedule", schedule, section="Watch"),)


async def schedule(visit: Visit) -> web.StreamResponse:
    """Return what is due now, in the next hours, and in the next days."""
    now, zone = datetime.now(UTC), visit.zone
    hours, days = await asyncio.gather(
        visit.call(COUNT_DUE, {"bounds": [BEGINNING, *hour_bounds(now, zone)]}),
        visit.call(COUNT_DUE, {"bounds": day_bounds(now, zone)}),
    )
    overdue, *by_hour = hours["items"]
    by_day = days["items"]
    return visit.render(
        "schedule.html",
        overdue=total([overdue]),
        day=total(by_hour),
        month=total(by_day),
        is_empty=not any(each["callbacks"] for each in (overdue, *by_hour, *by_day)),
        estimated=any(each["estimated"] for each in (overdue, *by_hour, *by_day)),
        hours=due_chart("Due by hour", by_hour, "%H:00", zone),
        days=due_chart("Due by day", by_day, "%a %d %b", zone),
    )
