"""Endpoints of customers: the list, one endpoint with its messages, and what is done with it."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final
from uuid import uuid4

from aiohttp import web

from services.console.forms import FormReader, errors_of, is_correctable
from services.console.pages.declaration import Handler, Page
from services.console.sign_in.roles import Role
from services.console.visit import Notice, Visit
from shared.contracts.endpoint_requests import (
    CHANGE_ENDPOINT,
    CREATE_ENDPOINT,
    DELETE_ENDPOINT,
    GET_ENDPOINT,
    LIST_ENDPOINT_MESSAGES,
    LIST_ENDPOINTS,
    LIST_REPLAYS,
    PAUSE_ENDPOINT,
    REPLAY_ENDPOINT,
    RESUME_ENDPOINT,
    ROTATE_SECRET,
    TEST_ENDPOINT,
)
from shared.contracts.endpoints import DeliveryStatus, EndpointStatus
from shared.contracts.requests import RpcOperation
from shared.http.problem import ProblemError

_PAGE: Final = 50
# Replays of an endpoint that its page shows, the latest first.
_REPLAYS: Final = 10
_FIELDS: Final = ("url", "description", "event_types", "headers", "rate_limit", "fingerprint")

# The name of each action, its title, its operation, and the notice after it.
_ACTIONS: Final = (
    (
        "pause",
        "Pause an endpoint",
        PAUSE_ENDPOINT,
        "The endpoint is paused. It keeps its messages.",
    ),
    ("resume", "Resume an endpoint", RESUME_ENDPOINT, "The endpoint is active."),
)


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (
        Page("GET", "/endpoints", Role.VIEWER, "Endpoints", endpoints, section="Send"),
        Page("GET", "/endpoints/new", Role.OPERATOR, "New endpoint", new),
        Page("POST", "/endpoints/new", Role.OPERATOR, "New endpoint", create),
        Page("GET", "/endpoints/{id}", Role.VIEWER, "Endpoint", endpoint),
        Page("GET", "/endpoints/{id}/edit", Role.OPERATOR, "Edit the endpoint", edit),
        Page("POST", "/endpoints/{id}/edit", Role.OPERATOR, "Edit the endpoint", change),
        Page("POST", "/endpoints/{id}/delete", Role.OPERATOR, "Delete an endpoint", delete),
        Page("POST", "/endpoints/{id}/rotate", Role.OPERATOR, "Rotate the secret", rotate),
        Page("POST", "/endpoints/{id}/test", Role.OPERATOR, "Send a test message", send_test),
        Page("POST", "/endpoints/{id}/replay", Role.OPERATOR, "Send messages again", replay),
        *(
            Page(
                "POST",
                f"/endpoints/{{id}}/{name}",
                Role.OPERATOR,
                title,
                _control(name, title, operation, text),
            )
            for name, title, operation, text in _ACTIONS
        ),
    )


async def endpoints(visit: Visit) -> web.StreamResponse:
    """Return the endpoints of the client."""
    query = {name: visit.query.get(name) or None for name in ("status", "cursor")}
    found = await visit.call(LIST_ENDPOINTS, {**query, "limit": _PAGE})
    return visit.render(
        "endpoints.html",
        endpoints=found["items"],
        next_cursor=found["next_cursor"],
        statuses=[("", "any"), *((each.value, each.value) for each in EndpointStatus)],
    )


async def endpoint(visit: Visit) -> web.StreamResponse:
    """Return an endpoint with its messages."""
    id_ = visit.parameters["id"]
    query = {name: visit.query.get(name) or None for name in ("status", "cursor")}
    found, deliveries, replays = await asyncio.gather(
        visit.call(GET_ENDPOINT, {"id": id_}),
        visit.call(LIST_ENDPOINT_MESSAGES, {"id": id_, "limit": _PAGE, **query}),
        visit.call(LIST_REPLAYS, {"id": id_, "limit": _REPLAYS}),
    )
    return visit.render(
        "endpoint.html",
        endpoint=found,
        deliveries=deliveries["items"],
        next_cursor=deliveries["next_cursor"],
        replays=replays["items"],
        statuses=[("", "any"), *((each.value, each.value) for each in DeliveryStatus)],
        key=str(uuid4()),
    )


async def new(visit: Visit) -> web.StreamResponse:
    """Return the empty form."""
    values = {**dict.fromkeys(_FIELDS, ""), "event_types": "*", "ordered": ""}
    return _form_page(visit, None, values, {"key": str(uuid4())})


async def create(visit: Visit) -> web.StreamResponse:
    """Create an endpoint, and show its secret. The secret is not stored in a cookie or a URL."""
    form = FormReader(visit.form, visit.zone)
    hidden = {"key": visit.text("key")}
    fields = {name: value for name, value in _content(form).items() if value is not None}
    try:
        form.check()
        created = await visit.call(
            CREATE_ENDPOINT, {"endpoint": fields, "idempotency_key": hidden["key"] or None}
        )
    except ProblemError as problem:
        return _again(visit, None, form, problem, hidden)
    await visit.record("endpoint.create", created["id"])
    return visit.render(
        "endpoint_secret.html", id=created["id"], secret=created["secret"], until=None
    )


async def edit(visit: Visit) -> web.StreamResponse:
    """Return the form with the fields of an endpoint. Headers may be secrets, and stay hidden."""
    found = await visit.call(GET_ENDPOINT, {"id": visit.parameters["id"]})
    values = {
        "url": found["url"],
        "description": found["description"],
        "event_types": "\n".join(found["event_types"]),
        "headers": "",
        "rate_limit": "" if found["rate_limit"] is None else f"{found['rate_limit']:g}",
        "fingerprint": found["fingerprint"] or "",
        "ordered": "true" if found["ordered"] else "",
    }
    return _form_page(visit, found, values, {"etag": found["etag"]})


async def change(visit: Visit) -> web.StreamResponse:
    """Change an endpoint."""
    id_, etag = visit.parameters["id"], visit.text("etag")
    form = FormReader(visit.form, visit.zone)
    fields = _content(form)
    if fields["headers"] is None:  # empty: unchanged
        del fields["headers"]
    body = {"id": id_, "change": fields, "if_match": [etag] if etag else None}
    try:
        form.check()
        await visit.call(CHANGE_ENDPOINT, body)
    except ProblemError as problem:
        found = await visit.call(GET_ENDPOINT, {"id": id_})
        return _again(visit, found, form, problem, {"etag": etag})
    await visit.record("endpoint.change", id_)
    return _to(visit, "The endpoint is changed.")


async def delete(visit: Visit) -> web.StreamResponse:
    """Delete an endpoint."""
    id_ = visit.parameters["id"]
    await visit.call(DELETE_ENDPOINT, {"id": id_})
    await visit.record("endpoint.delete", id_)
    return visit.redirect(visit.url("/endpoints"), Notice("The endpoint is deleted."))


async def rotate(visit: Visit) -> web.StreamResponse:
    """Replace the secret, and show the new one."""
    id_, key = visit.parameters["id"], visit.text("key")
    rotated = await visit.call(ROTATE_SECRET, {"id": id_, "idempotency_key": key or None})
    await visit.record("endpoint.rotate_secret", id_)
    return visit.render(
        "endpoint_secret.html", id=id_, secret=rotated["secret"], until=rotated["old_secret_until"]
    )


async def send_test(visit: Visit) -> web.StreamResponse:
    """Send a test message to an endpoint."""
    id_ = visit.parameters["id"]
    sent = await visit.call(TEST_ENDPOINT, {"id": id_})
    await visit.record("endpoint.test", id_, message_id=sent["message_id"])
    return _to(visit, "A test message is sent. Its attempts show the result.")


async def replay(visit: Visit) -> web.StreamResponse:
    """Send one message again, or all that failed in a period."""
    id_ = visit.parameters["id"]
    form = FormReader(visit.form, visit.zone)
    fields = {
        "message_id": form.text("message_id"),
        "since": form.time("since"),
        "until": form.time("until"),
    }
    form.check()
    given = {name: value for name, value in fields.items() if value is not None}
    started = await visit.call(REPLAY_ENDPOINT, {"id": id_, "replay": given})
    await visit.record("endpoint.replay", id_, replay=started["id"], **given)
    what = "The message is" if "message_id" in given else "The messages that failed are"
    return _to(visit, f"{what} sent again.")


def _control(name: str, title: str, operation: RpcOperation[Any], text: str) -> Handler:
    async def control(visit: Visit) -> web.StreamResponse:
        id_ = visit.parameters["id"]
        await visit.call(operation, {"id": id_})
        await visit.record(f"endpoint.{name}", id_)
        return _to(visit, text)

    control.__doc__ = f"{title}."
    return control


def _to(visit: Visit, text: str) -> web.StreamResponse:
    """Return the redirect to the endpoint, with a notice."""
    return visit.redirect(visit.url(f"/endpoints/{visit.parameters['id']}"), Notice(text))


def _content(form: FormReader) -> dict[str, Any]:
    """Return the fields of an endpoint."""
    return {
        "url": form.text("url") or "",
        "description": form.text("description") or "",
        "event_types": form.words("event_types"),
        "headers": form.json("headers"),
        "rate_limit": form.number("rate_limit"),
        "fingerprint": form.text("fingerprint"),
        "ordered": form.has("ordered"),
    }


def _again(
    visit: Visit, found: Any, form: FormReader, problem: ProblemError, hidden: Mapping[str, str]
) -> web.StreamResponse:
    """Return the form with what was entered, and what is wrong.

    Raises:
        ProblemError: nothing in the form would help.
    """
    if not is_correctable(problem):
        raise problem
    values = {name: form.raw(name) for name in (*_FIELDS, "ordered")}
    return _form_page(visit, found, values, hidden, errors=errors_of(problem))


def _form_page(
    visit: Visit,
    found: Any,
    values: Mapping[str, str],
    hidden: Mapping[str, str],
    *,
    errors: Any = (),
) -> web.StreamResponse:
    return visit.render(
        "endpoint_form.html",
        status=HTTPStatus.UNPROCESSABLE_ENTITY if errors else HTTPStatus.OK,
        found=found,
        values=values,
        hidden=hidden,
        errors=errors,
    )
