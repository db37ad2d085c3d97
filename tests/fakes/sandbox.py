"""The sandbox on a free port of this process, with a client to give it orders."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aiohttp
from yarl import URL

from services.sandbox.app import Places, serving
from services.sandbox.settings import Settings


class Sandbox:
    """A running sandbox; each test uses a mailbox of its own."""

    def __init__(self, places: Places, session: aiohttp.ClientSession) -> None:
        self.url = places.http
        self.smtp = places.smtp
        self.session = session

    async def mailbox(self, **order: Any) -> str:
        """Make a mailbox that follows an order; gives its URL."""
        name = uuid4().hex[:12]
        await self.order(name, **order)
        return str(self.url / "hooks" / name)

    async def order(self, mailbox: str, **order: Any) -> None:
        """Give an order to a mailbox, by name or URL."""
        name = URL(mailbox).name
        async with self.session.put(f"/api/mailboxes/{name}", json=order) as response:
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
        async with self.session.get("/api/deliveries/wait", params=query) as response:
            answer = await response.json()
        assert answer["complete"], f"{answer['count']} of {count} webhooks within {within} s"
        items: list[dict[str, Any]] = answer["items"]
        return items[::-1]

    async def tell(self, path: str, **order: Any) -> None:
        """Give an order to what stands at a path, such as /api/mails/order."""
        async with self.session.put(path, json=order) as response:
            assert response.status == 200, await response.text()

    async def came(
        self, path: str, count: int = 1, within: float = 20.0, **query: Any
    ) -> list[dict[str, Any]]:
        """Wait for so many accepted mails (/api/mails) or SMS (/api/sms); oldest first."""
        query |= {"count": count, "timeout": within, "limit": 1000}
        async with self.session.get(f"{path}/wait", params=query) as response:
            answer = await response.json()
        assert answer["complete"], f"{answer['count']} of {count} at {path} within {within} s"
        items: list[dict[str, Any]] = answer["items"]
        return items[::-1]

    async def get(self, path: str, **query: Any) -> Any:
        """Ask for JSON."""
        async with self.session.get(path, params=query) as response:
            assert response.status == 200, await response.text()
            return await response.json()


@asynccontextmanager
async def sandbox(amqp_url: str = "amqp://127.0.0.1:1/", **settings: Any) -> AsyncIterator[Sandbox]:
    """Run a sandbox for the length of the block; its producers publish to that broker."""
    async with (
        serving(Settings(port=0, smtp_port=0, **settings), amqp_url) as places,
        aiohttp.ClientSession(places.http, timeout=aiohttp.ClientTimeout(total=60)) as session,
    ):
        yield Sandbox(places, session)
