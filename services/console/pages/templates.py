"""Templates: the list, and previews with samples or entered data."""

from typing import Any, Final

from aiohttp import web
from pydantic_core import to_json

from services.console.forms import FormReader, errors_of, is_correctable
from services.console.pages.declaration import Page
from services.console.security import CONTENT_SECURITY_POLICY, FRAMED_POLICY, FRAMING_POLICY
from services.console.sign_in.roles import Role
from services.console.sms import segments
from services.console.visit import Visit
from shared.contracts.template_requests import LIST_TEMPLATES, PREVIEW_TEMPLATE
from shared.http.problem import ProblemError
from shared.registry import CHANNELS

_PARAMETERS: Final = ("name", "channel", "context", "user")


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (
        Page("GET", "/templates", Role.VIEWER, "Templates", templates, section="Send"),
        Page("GET", "/templates/preview", Role.VIEWER, "Preview of a template", preview),
        Page("GET", "/templates/frame", Role.VIEWER, "HTML of a template", frame),
    )


async def templates(visit: Visit) -> web.StreamResponse:
    """Return the list of templates."""
    found = await visit.call(LIST_TEMPLATES)
    return visit.render("templates.html", templates=found["items"])


async def preview(visit: Visit) -> web.StreamResponse:
    """Return what a template becomes: subject, text, and the HTML in a frame."""
    values = {name: visit.query.get(name, "") for name in _PARAMETERS}
    found: Any = None
    errors: Any = ()
    try:
        found = await _rendered(visit)
    except ProblemError as problem:
        if not is_correctable(problem):
            raise
        errors = errors_of(problem)
    else:
        for name in ("context", "user"):
            values[name] = values[name] or to_json(found[name], indent=2).decode()
    given = {name: visit.query.get(name) or None for name in _PARAMETERS}
    return visit.render(
        "template_preview.html",
        policy=FRAMING_POLICY,
        found=found,
        errors=errors,
        values=values,
        sms=segments(found["text"]) if found and not found["html"] else None,
        frame=visit.url("/templates/frame", **given),
        channels=[(name, name) for name in CHANNELS],
    )


async def frame(visit: Visit) -> web.StreamResponse:
    """Return the HTML of an e-mail alone, which runs no script and loads nothing."""
    found = await _rendered(visit)
    headers = {CONTENT_SECURITY_POLICY: FRAMED_POLICY}
    html = (found["html"] or "").encode(errors="backslashreplace")
    return web.Response(body=html, content_type="text/html", charset="utf-8", headers=headers)


async def _rendered(visit: Visit) -> Any:
    """Return the template in the URL, rendered.

    Raises:
        ProblemError: 422, a field is not valid, or the template cannot be rendered.
    """
    form = FormReader(visit.query, visit.zone)
    name = form.text("name") or ""
    body = {
        "name": name,
        "channel": form.text("channel") or ("sms" if name.startswith("sms/") else "email"),
        "context": form.json("context"),
        "user": form.json("user"),
    }
    form.check()
    return await visit.call(PREVIEW_TEMPLATE, body)
