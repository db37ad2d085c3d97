"""Messages to endpoints: one with its deliveries and attempts, and a new one."""

import asyncio
from http import HTTPStatus
from typing import Any, Final
from uuid import uuid4

from aiohttp import web
from pydantic_core import to_json

from services.console.forms import FormReader, errors_of, is_correctable
from services.console.pages.declaration import Page
from services.console.sign_in.roles import Role
from services.console.visit import Notice, Visit
from shared.contracts.endpoint_requests import (
    GET_ENDPOINT_MESSAGE,
    LIST_FAILED_DELIVERIES,
    LIST_MESSAGE_ATTEMPTS,
    SEND_ENDPOINT_MESSAGE,
)
from shared.http.problem import ProblemError

_PAGE: Final = 100
# Bytes of the form: a payload of a million, in which each character may take three.
_MAX_FORM: Final = 4_194_304
_FIELDS: Final = ("id", "event_type", "payload")


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (
        Page("GET", "/messages", Role.VIEWER, "Endpoint messages", message, section="Send"),
        Page("GET", "/messages/new", Role.OPERATOR, "New message", new),
        Page("POST", "/messages/new", Role.OPERATOR, "New message", send, max_body=_MAX_FORM),
    )


async def message(visit: Visit) -> web.StreamResponse:
    """Return the message with the id in the URL, or the latest failures of all endpoints."""
    id_ = visit.query.get("id", "").strip()
    cursor = visit.query.get("cursor") or None
    if not id_:
        failed = await visit.call(LIST_FAILED_DELIVERIES, {"limit": _PAGE, "cursor": cursor})
        return visit.render(
            "endpoint_message.html",
            message=None,
            failed=failed["items"],
            next_cursor=failed["next_cursor"],
        )
    found, attempts = await asyncio.gather(
        visit.call(GET_ENDPOINT_MESSAGE, {"id": id_}),
        visit.call(LIST_MESSAGE_ATTEMPTS, {"id": id_, "limit": _PAGE, "cursor": cursor}),
    )
    return visit.render(
        "endpoint_message.html",
        message=found,
        payload=to_json(found["payload"], indent=2).decode(),
        attempts=attempts["items"],
        next_cursor=attempts["next_cursor"],
    )


async def new(visit: Visit) -> web.StreamResponse:
    """Return the empty form."""
    return _page(visit, {"id": "", "event_type": "", "payload": "{}"}, str(uuid4()))


async def send(visit: Visit) -> web.StreamResponse:
    """Send a message to all endpoints of the client that select its type."""
    form = FormReader(visit.form, visit.zone)
    key = visit.text("key")
    fields = {"event_type": form.text("event_type") or "", "payload": form.json("payload")}
    if (id_ := form.text("id")) is not None:
        fields["id"] = id_
    try:
        form.check()
        sent = await visit.call(
            SEND_ENDPOINT_MESSAGE, {"message": fields, "idempotency_key": key or None}
        )
    except ProblemError as problem:
        if not is_correctable(problem):
            raise
        values = {name: form.raw(name) for name in _FIELDS}
        return _page(visit, values, key, errors=errors_of(problem))
    await visit.record("message.send", sent["id"], endpoints=sent["endpoints"])
    number = sent["endpoints"]
    text = f"The message is stored for {number} {'endpoint' if number == 1 else 'endpoints'}."
    return visit.redirect(visit.url("/messages", id=sent["id"]), Notice(text))


def _page(
    visit: Visit, values: dict[str, str], key: str, *, errors: Any = ()
) -> web.StreamResponse:
    return visit.render(
        "endpoint_message_form.html",
        status=HTTPStatus.UNPROCESSABLE_ENTITY if errors else HTTPStatus.OK,
        values=values,
        hidden={"key": key},
        errors=errors,
    )
