"""Postings: e-mails and SMS to the users of a list, with their progress and messages."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final
from uuid import uuid4

from aiohttp import web

from services.console.forms import FormReader, errors_of, is_correctable
from services.console.mailing_figures import LABELS
from services.console.pages.declaration import Page
from services.console.sign_in.roles import Role
from services.console.visit import Notice, Visit
from shared.contracts.posting_requests import (
    CREATE_POSTING,
    GET_POSTING,
    LIST_POSTING_MESSAGES,
    LIST_POSTINGS,
    MessageState,
)
from shared.contracts.template_requests import LIST_TEMPLATES
from shared.http.problem import ProblemError
from shared.registry import CHANNELS, PRIORITIES

_PAGE: Final = 50
_TEXTS: Final = ("template", "receivers", "priority", "expires_in", "from_event")
_PRIORITIES: Final = (("", "as the template says"), *((name, name) for name in PRIORITIES))


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (
        Page("GET", "/postings", Role.VIEWER, "Postings", postings, section="Send"),
        Page("GET", "/postings/new", Role.OPERATOR, "New posting", new),
        Page("POST", "/postings/new", Role.OPERATOR, "New posting", create),
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


async def new(visit: Visit) -> web.StreamResponse:
    """Return the empty form, with the template in the URL."""
    values = dict.fromkeys(_TEXTS, "") | {"template": visit.query.get("template", "")}
    return await _form(visit, values | {"template_context": "{}", "channels": []}, str(uuid4()))


async def create(visit: Visit) -> web.StreamResponse:
    """Accept a posting. The form has its key, so submitting it twice creates one posting."""
    form, key = FormReader(visit.form, visit.zone), visit.text("key")
    channels = [name for name in CHANNELS if form.has(f"channel-{name}")]
    context = form.json("template_context")
    try:
        content = form.given(*_TEXTS) | {
            "delivery_type": channels,
            "template_context": {} if context is None else context,
        }
        form.check()
        created = await visit.call(
            CREATE_POSTING, {"posting": content, "idempotency_key": key or None}
        )
    except ProblemError as problem:
        if not is_correctable(problem):
            raise
        values = {name: form.raw(name) for name in (*_TEXTS, "template_context")}
        return await _form(visit, values | {"channels": channels}, key, errors=errors_of(problem))
    await visit.record("posting.create", created["id"], template=content["template"])
    notice = Notice("The posting is accepted. Its messages follow.")
    return visit.redirect(visit.url(f"/postings/{created['id']}"), notice)


async def _form(
    visit: Visit, values: Mapping[str, Any], key: str, *, errors: Any = ()
) -> web.StreamResponse:
    found = await visit.call(LIST_TEMPLATES)
    return visit.render(
        "posting_form.html",
        status=HTTPStatus.UNPROCESSABLE_ENTITY if errors else HTTPStatus.OK,
        templates=[(each["name"],) * 2 for each in found["items"] if not each["error"]],
        channels=list(CHANNELS),
        priorities=_PRIORITIES,
        values=values,
        hidden={"key": key},
        errors=errors,
    )
