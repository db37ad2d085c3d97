"""Publishes an event, as a producer would."""

from http import HTTPStatus
from typing import Any, Final
from uuid import uuid4

from aiohttp import web
from pydantic_core import to_json

from services.console.forms import FormReader, errors_of, is_correctable
from services.console.pages.declaration import Page
from services.console.sign_in.roles import Role
from services.console.visit import Notice, Visit
from shared.http.event_publishing import event_message, publish_event
from shared.http.problem import ProblemError

_FIELDS: Final = ("from_service", "event", "event_id", "details", "occurred_at", "expires_at")


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (
        Page("GET", "/events", Role.VIEWER, "Events", events, section="Send"),
        Page("POST", "/events", Role.OPERATOR, "Publish an event", publish),
    )


async def events(visit: Visit) -> web.StreamResponse:
    """Return the form for an event."""
    values = {**dict.fromkeys(_FIELDS, ""), "details": "{}"}
    values["from_service"] = visit.client_id or ""
    return _page(visit, values, str(uuid4()))


async def publish(visit: Visit) -> web.StreamResponse:
    """Publish an event after the check of its fields; respond when the broker has confirmed it."""
    form = FormReader(visit.form, visit.zone)
    key = visit.text("key")
    fields = {
        **{name: form.text(name) for name in ("from_service", "event", "event_id")},
        "details": form.json("details"),
        "occurred_at": form.time("occurred_at"),
        "expires_at": form.time("expires_at"),
    }
    given = {name: value for name, value in fields.items() if value is not None}
    if visit.client_id not in (None, given.get("from_service")):
        form.refuse("from_service", "must be the selected client")
    try:
        form.check()
        id_, message = event_message(to_json(given), visit.context(), key or None)
        await publish_event(visit.site.publisher, message)
    except ProblemError as problem:
        if not is_correctable(problem):
            raise
        values = {name: form.raw(name) for name in _FIELDS}
        return _page(visit, values, key, errors=errors_of(problem))
    await visit.record("event.publish", id_, event=f"{given['from_service']}.{given['event']}")
    notice = Notice("The event is published. Its postings appear here if a rule creates some.")
    return visit.redirect(visit.url("/postings", from_event=id_), notice)


def _page(visit: Visit, values: Any, key: str, *, errors: Any = ()) -> web.StreamResponse:
    return visit.render(
        "events.html",
        status=HTTPStatus.UNPROCESSABLE_ENTITY if errors else HTTPStatus.OK,
        values=values,
        hidden={"key": key},
        errors=errors,
    )
