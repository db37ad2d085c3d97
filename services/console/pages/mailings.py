"""Mailings: the list, one mailing with its statistics, and what is done with it."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from services.console.feeds import Read
from services.console.live import stream
from services.console.mailing_figures import LABELS, charts_of, progress_of
from services.console.pages.declaration import Handler, Page
from services.console.sign_in.roles import Role
from services.console.sms import segments
from services.console.visit import Notice, Visit
from shared.contracts.mailing_requests import (
    CANCEL_MAILING,
    COUNT_AUDIENCE,
    DELETE_MAILING,
    GET_MAILING,
    LIST_MAILING_MESSAGES,
    LIST_MAILINGS,
    PAUSE_MAILING,
    PREVIEW_MAILING,
    RESUME_MAILING,
    START_MAILING,
    TEST_MAILING,
)
from shared.contracts.mailing_statistics import GET_MAILING_STATISTICS, GET_STATISTICS
from shared.contracts.mailings import MailingStatus
from shared.contracts.posting_requests import MessageState
from shared.contracts.requests import RpcOperation
from shared.http.mailing_export import export_messages
from shared.http.problem import ProblemError

# Mailings on a page of the list, and messages.
_PAGE: Final = 25
_MESSAGES_PAGE: Final = 100
# Statuses in which messages are created.
_UNDER_WAY: Final = frozenset({MailingStatus.RUNNING, MailingStatus.PAUSED})
_CONTENT: Final = ("text", "template", "template_context", "end_at", "filter")


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (
        Page("GET", "/mailings", Role.VIEWER, "Mailings", mailings, section="Send"),
        Page("GET", "/mailings/{id}", Role.VIEWER, "Mailing", mailing),
        Page("GET", "/live/mailings/{id}", Role.VIEWER, "Mailing", live_mailing, live=True),
        Page("GET", "/mailings/{id}/messages", Role.VIEWER, "Messages of a mailing", messages),
        Page("GET", "/mailings/{id}/messages.csv", Role.VIEWER, "Messages as CSV", messages_csv),
        Page("POST", "/mailings/{id}/test", Role.OPERATOR, "Send a test message", send_test),
        Page("POST", "/mailings/{id}/delete", Role.OPERATOR, "Delete a mailing", delete),
        *(
            Page(
                "POST",
                f"/mailings/{{id}}/{name}",
                Role.OPERATOR,
                title,
                _control(name, title, operation, text),
            )
            for name, title, operation, text in _ACTIONS
        ),
    )


# The name of each action, its title, its operation, and the notice after it.
_ACTIONS: Final = (
    ("start", "Start a mailing", START_MAILING, "The mailing is started."),
    ("pause", "Pause a mailing", PAUSE_MAILING, "The mailing is paused."),
    ("resume", "Resume a mailing", RESUME_MAILING, "The mailing continues."),
    ("cancel", "Cancel a mailing", CANCEL_MAILING, "The mailing is cancelled."),
)


async def mailings(visit: Visit) -> web.StreamResponse:
    """Return the list of mailings, with the progress of those under way."""
    query = {name: visit.query.get(name) or None for name in ("status", "cursor")}
    found, totals = await asyncio.gather(
        visit.call(LIST_MAILINGS, {**query, "limit": _PAGE}), visit.call(GET_STATISTICS)
    )
    active = [each["id"] for each in found["items"] if each["status"] in _UNDER_WAY]
    figures = await asyncio.gather(*(_statistics(visit, id_) for id_ in active))
    progress = {
        id_: progress_of(each)
        for id_, each in zip(active, figures, strict=True)
        if each is not None
    }
    return visit.render(
        "mailings.html",
        mailings=found["items"],
        next_cursor=found["next_cursor"],
        totals=totals,
        labels=LABELS,
        progress=progress,
        statuses=[("", "any"), *((each.value, each.value) for each in MailingStatus)],
    )


async def mailing(visit: Visit) -> web.StreamResponse:
    """Return a mailing with its statistics and a preview."""
    found = await _reader(visit)()
    content = {name: found["mailing"][name] for name in _CONTENT}
    preview = await preview_of(visit, content)
    return visit.render("mailing.html", preview=preview, **_figures(visit, found))


async def live_mailing(visit: Visit) -> web.StreamResponse:
    """Stream the statistics of a mailing."""
    template = visit.site.environment.get_template("mailing_figures.html")

    def render(found: Any) -> str:
        return template.render(visit=visit, **_figures(visit, found))

    key = ("mailing", visit.client_id, visit.parameters["id"])
    async with visit.site.feeds.follow(key, lambda: _reader(visit)) as values:
        return await stream(visit, values, render)


def _reader(visit: Visit) -> Read:
    """Return what reads a mailing with its statistics and the number of clients who match now."""
    request = {"id": visit.parameters["id"]}

    async def read() -> Any:
        found, statistics = await asyncio.gather(
            visit.call(GET_MAILING, request), visit.call(GET_MAILING_STATISTICS, request)
        )
        ended = found["ended_at"] is not None
        audience = 0 if ended else await count_audience(visit, found["filter"])
        return {"mailing": found, "statistics": statistics, "audience": audience}

    return read


def _figures(visit: Visit, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the part of the page that changes."""
    statistics = found["statistics"]
    return {
        **found,
        "labels": LABELS,
        "progress": progress_of(statistics, found["audience"]),
        "charts": charts_of(statistics, visit.zone),
    }


async def messages(visit: Visit) -> web.StreamResponse:
    """Return the messages of a mailing."""
    id_ = visit.parameters["id"]
    query = {name: visit.query.get(name) or None for name in ("status", "cursor")}
    client = visit.query.get("recipient") or None
    body = {"id": id_, "client_id": client, "limit": _MESSAGES_PAGE, **query}
    found = await visit.call(LIST_MAILING_MESSAGES, body)
    return visit.render(
        "mailing_messages.html",
        id=id_,
        messages=found["items"],
        next_cursor=found["next_cursor"],
        labels=LABELS,
        statuses=[("", "any"), *((each.value, LABELS[each.value]) for each in MessageState)],
    )


async def messages_csv(visit: Visit) -> web.StreamResponse:
    """Stream the messages of a mailing as CSV."""
    query = {"status": visit.query.get("status") or None}
    context, services = visit.context(), visit.site.services
    return await export_messages(visit.request, services, context, visit.parameters["id"], query)


async def send_test(visit: Visit) -> web.StreamResponse:
    """Send the text to one phone."""
    id_, phone = visit.parameters["id"], visit.text("phone")
    sent = await visit.call(TEST_MAILING, {"id": id_, "test": {"phone": phone}})
    await visit.record("mailing.test", id_, message_id=sent["message_id"])
    return visit.redirect(visit.url(f"/mailings/{id_}"), Notice(f"A test is sent to {phone}."))


async def delete(visit: Visit) -> web.StreamResponse:
    """Delete a mailing with its statistics."""
    id_ = visit.parameters["id"]
    await visit.call(DELETE_MAILING, {"id": id_, "if_match": seen(visit)})
    await visit.record("mailing.delete", id_)
    return visit.redirect(visit.url("/mailings"), Notice("The mailing is deleted."))


def _control(name: str, title: str, operation: RpcOperation[Any], text: str) -> Handler:
    async def control(visit: Visit) -> web.StreamResponse:
        id_ = visit.parameters["id"]
        await visit.call(operation, {"id": id_, "if_match": seen(visit)})
        await visit.record(f"mailing.{name}", id_)
        return visit.redirect(visit.url(f"/mailings/{id_}"), Notice(text))

    control.__doc__ = f"{title}."
    return control


def seen(visit: Visit) -> list[str] | None:
    """Return the entity tag of what the user has seen, for actions that depend on it."""
    etag = visit.text("etag")
    return [etag] if etag else None


async def count_audience(visit: Visit, filter_: Any) -> int:
    """Return the number of clients who match a filter now."""
    found = await visit.call(COUNT_AUDIENCE, {"filter": filter_})
    clients: int = found["clients"]
    return clients


async def preview_of(visit: Visit, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the text for a client: the one with the entered phone, or one who matches.

    Without a text it has the cause. So a page can be shown without a preview.
    """
    given = visit.text("phone") or visit.query.get("phone", "").strip()
    fields = {name: value for name, value in content.items() if value is not None}
    try:
        shown = await visit.call(PREVIEW_MAILING, {"content": fields, "phone": given or None})
    except ProblemError as problem:
        causes = "; ".join(map(str, problem.errors)) or str(problem)
        return {"phone": given, "text": None, "cause": causes}
    return {**shown, "phone": given, "sms": segments(shown["text"])}


async def _statistics(visit: Visit, id_: str) -> Any:
    """Return the statistics of a mailing, or None if it was deleted in the meantime."""
    try:
        return await visit.call(GET_MAILING_STATISTICS, {"id": id_})
    except ProblemError:
        return None
