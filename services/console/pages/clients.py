"""The client directory: search, one client, and the import of a file."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from services.console.forms import FormReader, errors_of, is_correctable
from services.console.pages.declaration import Page
from services.console.sign_in.roles import Role
from services.console.visit import Notice, Visit
from shared.contracts.client_requests import (
    CHANGE_CLIENT,
    CREATE_CLIENT,
    DELETE_CLIENT,
    GET_CLIENT,
    LIST_CLIENTS,
)
from shared.http.client_import import import_clients
from shared.http.problem import ProblemError

_PAGE: Final = 50
# Bytes of an imported file: some 500,000 clients. `POST /v1/clients/import` has no limit.
MAX_FILE: Final = 33_554_432
_CHUNK: Final = 65_536
_FILTERS: Final = ("phone", "tag", "operator_code", "timezone", "cursor")
_FIELDS: Final = ("phone", "tag", "operator_code", "timezone")


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (
        Page("GET", "/clients", Role.VIEWER, "Clients", clients, section="Send"),
        Page("GET", "/clients/new", Role.OPERATOR, "New client", new),
        Page("POST", "/clients/new", Role.OPERATOR, "New client", create),
        Page("GET", "/clients/import", Role.OPERATOR, "Import clients", import_form),
        Page(
            "POST", "/clients/import", Role.OPERATOR, "Import clients", import_, max_body=MAX_FILE
        ),
        Page("GET", "/clients/{id}", Role.VIEWER, "Client", client),
        Page("POST", "/clients/{id}", Role.OPERATOR, "Client", change),
        Page("POST", "/clients/{id}/delete", Role.OPERATOR, "Delete a client", delete),
    )


async def clients(visit: Visit) -> web.StreamResponse:
    """Return the clients that match the filter."""
    query = {name: value for name in _FILTERS if (value := visit.query.get(name, "").strip())}
    found = await visit.call(LIST_CLIENTS, {**query, "limit": _PAGE})
    return visit.render(
        "clients.html",
        clients=found["items"],
        next_cursor=found["next_cursor"],
        is_filtered=bool(query),
    )


async def new(visit: Visit) -> web.StreamResponse:
    """Return the empty form."""
    return _page(visit, None, dict.fromkeys(_FIELDS, ""))


async def create(visit: Visit) -> web.StreamResponse:
    """Create a client."""
    form = FormReader(visit.form, visit.zone)
    try:
        created = await visit.call(CREATE_CLIENT, {"client": _given(form)})
    except ProblemError as problem:
        return _again(visit, None, problem)
    await visit.record("client.create", created["id"])
    return visit.redirect(visit.url(f"/clients/{created['id']}"), Notice("The client is saved."))


async def client(visit: Visit) -> web.StreamResponse:
    """Return a client."""
    found = await visit.call(GET_CLIENT, {"id": visit.parameters["id"]})
    return _page(visit, found, _values(found))


async def change(visit: Visit) -> web.StreamResponse:
    """Change a client."""
    id_, etag = visit.parameters["id"], visit.text("etag")
    form = FormReader(visit.form, visit.zone)
    given = _given(form)
    # An empty tag removes it, and an empty operator code is that of the phone.
    fields = {**given, "tag": given.get("tag"), "operator_code": given.get("operator_code")}
    body = {"id": id_, "change": fields, "if_match": [etag] if etag else None}
    try:
        await visit.call(CHANGE_CLIENT, body)
    except ProblemError as problem:
        return _again(visit, await visit.call(GET_CLIENT, {"id": id_}), problem)
    await visit.record("client.change", id_)
    return visit.redirect(visit.url(f"/clients/{id_}"), Notice("The client is changed."))


async def delete(visit: Visit) -> web.StreamResponse:
    """Delete a client."""
    id_ = visit.parameters["id"]
    await visit.call(DELETE_CLIENT, {"id": id_})
    await visit.record("client.delete", id_)
    return visit.redirect(visit.url("/clients"), Notice("The client is deleted."))


async def import_form(visit: Visit) -> web.StreamResponse:
    """Return the form for a file."""
    return visit.render("clients_import.html", report=None, errors=())


async def import_(visit: Visit) -> web.StreamResponse:
    """Import a file, and return the report with the lines that were not imported."""
    uploaded = visit.form.get("file")
    if not isinstance(uploaded, web.FileField) or not uploaded.filename:
        form = FormReader(visit.form, visit.zone)
        form.refuse("file", "is required")
        return _import_page(visit, errors=form.errors)
    is_csv = not uploaded.filename.lower().endswith((".jsonl", ".ndjson", ".json"))
    try:
        with closing(uploaded.file):
            report = await import_clients(
                visit.site.services, visit.context(), _chunks(uploaded), is_csv=is_csv
            )
    except ProblemError as problem:
        if not is_correctable(problem):
            raise
        return _import_page(visit, errors=errors_of(problem))
    counts = {name: report[name] for name in ("created", "updated", "failed")}
    await visit.record("client.import", uploaded.filename[:200], **counts)
    return _import_page(visit, report=report)


async def _chunks(uploaded: web.FileField) -> AsyncIterator[bytes]:
    """Yield the content of a file, which the form has put on the disk."""
    while chunk := await asyncio.to_thread(uploaded.file.read, _CHUNK):
        yield chunk


def _import_page(visit: Visit, *, report: Any = None, errors: Any = ()) -> web.StreamResponse:
    status = HTTPStatus.UNPROCESSABLE_ENTITY if errors else HTTPStatus.OK
    return visit.render("clients_import.html", status=status, report=report, errors=errors)


def _given(form: FormReader) -> dict[str, str]:
    """Return the fields that are not empty."""
    return {name: value for name in _FIELDS if (value := form.text(name)) is not None}


def _values(found: Mapping[str, Any]) -> dict[str, str]:
    values = {name: found[name] or "" for name in _FIELDS}
    # An operator code that is that of the phone follows a change of the phone.
    if found["operator_code"] == found["phone"][1:4]:
        values["operator_code"] = ""
    return values


def _again(visit: Visit, found: Any, problem: ProblemError) -> web.StreamResponse:
    """Return the form with what was entered, and what is wrong.

    Raises:
        ProblemError: nothing in the form would help.
    """
    if not is_correctable(problem):
        raise problem
    values = {name: visit.text(name) for name in _FIELDS}
    return _page(visit, found, values, errors=errors_of(problem))


def _page(
    visit: Visit, found: Any, values: Mapping[str, str], *, errors: Any = ()
) -> web.StreamResponse:
    status = HTTPStatus.UNPROCESSABLE_ENTITY if errors else HTTPStatus.OK
    return visit.render("client.html", status=status, found=found, values=values, errors=errors)
