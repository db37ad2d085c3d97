"""Creates and edits mailings, with a preview before anything is saved."""

from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final
from uuid import uuid4

from aiohttp import web

from services.console.forms import FormReader, errors_of, is_correctable
from services.console.mailing_forms import (
    OPEN_STATUSES,
    content_of,
    filter_of,
    limits_of,
    new_values,
    sent_values,
    values_of,
)
from services.console.pages.declaration import Page
from services.console.pages.mailings import count_audience, preview_of, seen
from services.console.sign_in.roles import Role
from services.console.visit import Notice, Visit
from shared.contracts.mailing_requests import CHANGE_MAILING, CREATE_MAILING, GET_MAILING
from shared.http.problem import ProblemError

# What the buttons of the form do.
_PREVIEW: Final = "preview"
_DRAFT: Final = "draft"


def pages() -> tuple[Page, ...]:
    """Return the declarations. They come before those of one mailing, because of their paths."""
    return (
        Page("GET", "/mailings/new", Role.OPERATOR, "New mailing", new),
        Page("POST", "/mailings/new", Role.OPERATOR, "New mailing", create),
        Page("GET", "/mailings/{id}/edit", Role.OPERATOR, "Edit the mailing", edit),
        Page("POST", "/mailings/{id}/edit", Role.OPERATOR, "Edit the mailing", change),
    )


async def new(visit: Visit) -> web.StreamResponse:
    """Return the empty form."""
    values = new_values(datetime.now(UTC), visit.zone)
    return _page(visit, None, values, {"key": str(uuid4())})


async def create(visit: Visit) -> web.StreamResponse:
    """Create a mailing, or show what it would send."""
    form = FormReader(visit.form, visit.zone)
    values = sent_values(form, new_values(datetime.now(UTC), visit.zone))
    # The form names the mailing, so that sending it twice creates one.
    hidden = {"key": visit.text("key")}
    try:
        content = content_of(form)
        form.check()
        if visit.text("do") == _PREVIEW:
            return await _previewed(visit, None, values, content, form, hidden)
        body = {**content, "draft": visit.text("do") == _DRAFT}
        created = await visit.call(
            CREATE_MAILING, {"mailing": body, "idempotency_key": hidden["key"] or None}
        )
    except ProblemError as problem:
        return _again(visit, None, values, problem, hidden)
    await visit.record("mailing.create", created["id"], status=created["status"])
    return visit.redirect(visit.url(f"/mailings/{created['id']}"), Notice("The mailing is saved."))


async def edit(visit: Visit) -> web.StreamResponse:
    """Return the form with the fields of a mailing."""
    mailing = await visit.call(GET_MAILING, {"id": visit.parameters["id"]})
    return _page(visit, mailing, values_of(mailing, visit.zone), {"etag": mailing["etag"]})


async def change(visit: Visit) -> web.StreamResponse:
    """Change a mailing, or show what it would send."""
    id_ = visit.parameters["id"]
    mailing = await visit.call(GET_MAILING, {"id": id_})
    form = FormReader(visit.form, visit.zone)
    before = values_of(mailing, visit.zone)
    is_open = mailing["status"] in OPEN_STATUSES
    values = sent_values(form, before) if is_open else {**before, **_limits(form)}
    hidden = {"etag": visit.text("etag")}
    try:
        changes = content_of(form) if is_open else limits_of(form)
        form.check()
        if is_open and visit.text("do") == _PREVIEW:
            return await _previewed(visit, mailing, values, changes, form, hidden)
        await visit.call(CHANGE_MAILING, {"id": id_, "changes": changes, "if_match": seen(visit)})
    except ProblemError as problem:
        return _again(visit, mailing, values, problem, hidden)
    await visit.record("mailing.change", id_, fields=sorted(changes))
    return visit.redirect(visit.url(f"/mailings/{id_}"), Notice("The mailing is changed."))


def _limits(form: FormReader) -> dict[str, str]:
    return {name: form.raw(name) for name in ("end_at", "rate_per_minute")}


async def _previewed(  # noqa: PLR0913, PLR0917 - the parts of the form
    visit: Visit,
    mailing: Any,
    values: Mapping[str, str],
    content: Mapping[str, Any],
    form: FormReader,
    hidden: Mapping[str, str],
) -> web.StreamResponse:
    """Return the form with the text for a client, and the number of clients. Nothing is saved."""
    preview = await preview_of(visit, content)
    audience = await count_audience(visit, filter_of(form))
    return _page(visit, mailing, values, hidden, preview=preview, audience=audience)


def _again(
    visit: Visit,
    mailing: Any,
    values: Mapping[str, str],
    problem: ProblemError,
    hidden: Mapping[str, str],
) -> web.StreamResponse:
    """Return the form with what was entered, and what is wrong.

    Raises:
        ProblemError: nothing in the form would help.
    """
    if not is_correctable(problem):
        raise problem
    return _page(visit, mailing, values, hidden, errors=errors_of(problem))


def _page(  # noqa: PLR0913 - the parts of the form
    visit: Visit,
    mailing: Any,
    values: Mapping[str, str],
    hidden: Mapping[str, str],
    *,
    errors: Any = (),
    preview: Any = None,
    audience: int | None = None,
) -> web.StreamResponse:
    return visit.render(
        "mailing_form.html",
        status=HTTPStatus.UNPROCESSABLE_ENTITY if errors else HTTPStatus.OK,
        mailing=mailing,
        is_open=mailing is None or mailing["status"] in OPEN_STATUSES,
        values=values,
        hidden=hidden,
        errors=errors,
        preview=preview,
        audience=audience,
    )
