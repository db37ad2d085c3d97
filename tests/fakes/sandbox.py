"""The sandbox on a free port of this process, with a client to give it orders."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aiohttp
from yarl import URL

from services.sandbox.app import serving
from services.sandbox.settings import Settings


class Sandbox:
    """A running sandbox; each test uses a mailbox of its own."""

    def __init__(self, url: URL, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def mailbox(self, **order: Any) -> str:
        """Make a mailbox that follows an order; gives its URL."""
        name = uuid4().hex[:12]
        await self.order(name, **order)
        return str(self.url / "hooks" / name)

    async def order(self, mailbox: str, **order: Any) -> None:
        """Give an order to a mailbox, by name or URL."""
        name = URL(mailbox).name
        async with self._session.put(f"/api/mailboxes/{name}", json=order) as response:
            assert response.status == 200, await response.text()

    async def hooks(
        self, mailbox: str, count: int = 1, webhook_id: str = "", within: float = 20.0
    ) -> list[dict[str, Any]]:
        """Wait for so many webhooks; gives them oldest first."""
        query: dict[str, str | float] = {
            "mailbox": URL(mailbox).name,
            "count": count,
            "timeout": within,
        }
        if webhook_id:
            query["webhook_id"] = webhook_id
        async with self._session.get("/api/deliveries/wait", params=query) as response:
            answer = await response.json()
        assert answer["complete"], f"{answer['count']} of {count} webhooks within {within} s"
        items: list[dict[str, Any]] = answer["items"]
        return items[::-1]


@asynccontextmanager
async def sandbox() -> AsyncIterator[Sandbox]:
    """Run a sandbox for the length of the block."""
    async with (
        serving(Settings(port=0, smtp_port=0)) as places,
        aiohttp.ClientSession(places.http, timeout=aiohttp.ClientTimeout(total=60)) as session,
    ):
        yield Sandbox(places.http, session)
