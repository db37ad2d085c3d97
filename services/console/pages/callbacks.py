"""Scheduled callbacks of the selected client: the list, and a new one."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from services.console.forms import FormReader
from services.console.pages.callback import ONE
from services.console.pages.declaration import Page
from services.console.sign_in.roles import Role
from services.console.visit import Notice, Visit
from shared.contracts.requests import FieldError
from shared.contracts.schedule_requests import CREATE_CALLBACK, LIST_CALLBACKS
from shared.http.problem import ProblemError

PAGE_SIZE: Final = 50
STATUSES: Final = (
    ("", "all"),
    *(
        (name, name)
        for name in ("scheduled", "dispatched", "retrying", "notified", "failed", "cancelled")
    ),
)
_NEW_FIELDS: Final = (
    *("url", "run_at", "group_key", "event_key", "hmac_secret", "cron", "timezone", "every"),
)


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (
        Page("GET", "/callbacks", Role.VIEWER, "Callbacks", callbacks, section="Watch"),
        Page("GET", "/callbacks/new", Role.OPERATOR, "Schedule a callback", new),
        Page("POST", "/callbacks/new", Role.OPERATOR, "Schedule a callback", create),
    )


async def callbacks(visit: Visit) -> web.StreamResponse:
    """Return the callbacks of the client, the newest first; with an id, that callback."""
    if id_ := visit.query.get("id", "").strip():
        return visit.redirect(visit.url(ONE, id=id_))
    form = FormReader(visit.query, visit.zone)
    body = form.given("status", "group_key", "event_key", "cursor")
    found = await visit.call(LIST_CALLBACKS, body | {"limit": PAGE_SIZE})
    return visit.render(
        "callbacks.html",
        callbacks=found["items"],
        next_cursor=found["next_cursor"],
        statuses=STATUSES,
    )


async def new(visit: Visit) -> web.StreamResponse:
    """Return the empty form."""
    return _form(visit, ())


async def create(visit: Visit) -> web.StreamResponse:
    """Schedule a callback; if a field is not valid, return the form with the reasons."""
    try:
        created = await visit.call(CREATE_CALLBACK, {"callback": _command(visit)})
    except ProblemError as problem:
        if not problem.errors:
            raise
        return _form(visit, problem.errors, problem.status)
    await visit.record("schedule", f"callback {created['id']}", run_at=created["run_at"])
    return visit.redirect(visit.url(ONE, id=created["id"]), Notice("The callback is scheduled."))


def _form(visit: Visit, errors: Sequence[FieldError], status: int = HTTPStatus.OK) -> web.Response:
    values = {name: visit.text(name) for name in (*_NEW_FIELDS, "context")}
    return visit.render("new_callback.html", status=status, values=values, errors=errors)


def _command(visit: Visit) -> dict[str, Any]:
    """Return the ScheduleCallback of the form.

    Raises:
        ProblemError: 422, the context is not JSON, or a time or a number is not valid.
    """
    form = FormReader(visit.form, visit.zone)
    command: dict[str, Any] = form.given("url", "group_key", "event_key", "hmac_secret")
    command |= form.times("run_at") | {"context": form.json("context")}
    repeat: dict[str, Any] = form.given("cron", "timezone")
    if (every := form.number("every")) is not None:
        repeat["every"] = every
    form.check()
    return command | {"repeat": repeat} if repeat else command
