"""The declaration of a page. Each module in this package declares its pages with their handlers.

The routes, the navigation and the check of roles follow from the declarations.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from services.console.sign_in.roles import Role
from services.console.visit import Visit

Handler = Callable[[Visit], Awaitable[web.StreamResponse]]

# Bytes of a form. The largest have a text of a mailing, or a payload.
MAX_FORM: Final = 262_144


@dataclass(frozen=True, slots=True)
class Page:
    """A page (GET) or an action (POST).

    path: may contain parameters, such as `/callbacks/{id}`; they are in `visit.parameters`.
    role: the lowest role that may request it. None: also users who are not signed in.
    title: its heading, and what the navigation shows.
    section: the part of the navigation that links to it; None if it is not linked there.
    max_body: the maximum size of the form in bytes. Beyond it the status is 413.
    live: a stream that a page opens by itself. It does not keep an idle session open.
    """

    method: str
    path: str
    role: Role | None
    title: str
    handler: Handler
    section: str | None = None
    max_body: int = MAX_FORM
    live: bool = False
