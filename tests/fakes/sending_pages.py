"""The console in this process in front of real services, for the pages that send something."""

import html
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlencode

from services.console.sign_in.roles import Role
from tests.fakes.console import Browser, Shown, running_console
from tests.fakes.gateway import Caller
from tests.fakes.system import System

# What others control is shown as text, wherever it stands.
HOSTILE = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"


class Desk:
    """An operator, a viewer, and callers of the gateway, in front of the same services."""

    def __init__(self, browser: Browser, viewer: Browser, call: Caller) -> None:
        self.browser = browser
        self.viewer = viewer
        self.call = call

    async def actions(self, client: str) -> list[str]:
        """Return what the operator did for a client, as the audit log has it, in order."""
        query = urlencode({"client_id": client, "limit": 1000})
        found = await self.call.as_client("operator")("GET", f"/v1/audit?{query}")
        items = found.json["items"]
        assert {each["actor"] for each in items} <= {"operator@example.com"}
        return [each["action"] for each in reversed(items)]


@asynccontextmanager
async def desk(services: System, database_url: str, amqp_url: str) -> AsyncIterator[Desk]:
    """Run a console in front of these services, for a signed-in operator."""
    async with (
        services.calling() as call,
        running_console(database_url, amqp_url=amqp_url) as console,
        console.browser(Role.OPERATOR) as browser,
        console.browser(Role.VIEWER) as viewer,
    ):
        yield Desk(browser, viewer, call)


def text_of(shown: Shown) -> str:
    """Return the text of a page, as a person reads it."""
    content = re.sub(r"<svg.*?</svg>|<[^>]+>", " ", shown.text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(content))


def is_harmless(shown: Shown) -> bool:
    """Return whether a page shows hostile values as text only."""
    return "<script>alert" not in shown.text and "\"'&{{" not in shown.text
