"""Postings: e-mails and SMS to the users of a list, with their progress and messages."""

import asyncio
from typing import Final

from aiohttp import web

from services.console.mailing_figures import LABELS
from services.console.pages.declaration import Page
from services.console.sign_in.roles import Role
from services.console.visit import Visit
from shared.contracts.posting_requests import (
    GET_POSTING,
    LIST_POSTING_MESSAGES,
    LIST_POSTINGS,
    MessageState,
)

_PAGE: Final = 50


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (
        Page("GET", "/postings", Role.VIEWER, "Postings", postings, section="Send"),
        Page("GET", "/postings/{id}", Role.VIEWER, "Posting", posting),
    )


async def postings(visit: Visit) -> web.StreamResponse:
    """Return the postings, all or those of an event."""
    query = {name: visit.query.get(name) or None for name in ("from_event", "cursor")}
    found = await visit.call(LIST_POSTINGS, {**query, "limit": _PAGE})
    return visit.render(
        "postings.html", postings=found["items"], next_cursor=found["next_cursor"], labels=LABELS
    )


async def posting(visit: Visit) -> web.StreamResponse:
    """Return a posting with its messages."""
    id_ = visit.parameters["id"]
    query = {name: visit.query.get(name) or None for name in ("status", "cursor")}
    found, messages = await asyncio.gather(
        visit.call(GET_POSTING, {"id": id_}),
        visit.call(LIST_POSTING_MESSAGES, {"id": id_, "limit": _PAGE, **query}),
    )
    return visit.render(
        "posting.html",
        posting=found,
        messages=messages["items"],
        next_cursor=messages["next_cursor"],
        labels=LABELS,
        statuses=[("", "any"), *((each.value, LABELS[each.value]) for each in MessageState)],
    )
