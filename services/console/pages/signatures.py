"""The check of a signature: paste what a receiver got, and see whether it verifies, and why not."""

from datetime import UTC, datetime

from aiohttp import web

from services.console.pages.declaration import Page
from services.console.sign_in.roles import Role
from services.console.signatures import check, parse_headers
from services.console.visit import Visit


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (
        Page("GET", "/signatures", Role.OPERATOR, "Signature check", form, section="Watch"),
        Page("POST", "/signatures", Role.OPERATOR, "Signature check", result),
    )


async def form(visit: Visit) -> web.StreamResponse:
    """Return the empty form."""
    return visit.render("signatures.html", checks=None, body="", received="")


async def result(visit: Visit) -> web.StreamResponse:
    """Return the result. Nothing is stored, and the secret is not shown again."""
    # Not `text`, which removes the spaces around it. Browsers send each line break as CR LF.
    given = visit.form.get("body", "")
    body = given.replace("\r\n", "\n") if isinstance(given, str) else ""
    received = visit.text("headers")
    checks = check(
        body.encode(errors="replace"),
        parse_headers(received),
        visit.text("secret"),
        datetime.now(UTC),
    )
    return visit.render("signatures.html", checks=checks, body=body, received=received)
