"""The sandbox on a free port of this process, with a client for its API."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aiohttp
from yarl import URL

from services.sandbox.app import SandboxUrls, serving
from services.sandbox.settings import SandboxSettings


class Sandbox:
    """A running sandbox; each test uses a mailbox of its own."""

    def __init__(self, urls: SandboxUrls, session: aiohttp.ClientSession) -> None:
        self.url = urls.http
        self.smtp = urls.smtp
        self.session = session

    async def mailbox(self, **settings: Any) -> str:
        """Create a mailbox with these settings and return its URL."""
        name = uuid4().hex[:12]
        await self.configure_mailbox(name, **settings)
        return str(self.url / "hooks" / name)

    async def configure_mailbox(self, mailbox: str, **settings: Any) -> None:
        """Replace the settings of a mailbox, given its name or URL."""
        await self.configure(f"/api/mailboxes/{URL(mailbox).name}", **settings)

    async def webhooks(
        self, mailbox: str, count: int = 1, webhook_id: str = "", within: float = 60.0
    ) -> list[dict[str, Any]]:
        """Wait for so many webhooks and return them, oldest first."""
        query: dict[str, str | float] = {
            "mailbox": URL(mailbox).name,
            "count": count,
            "timeout": within,
        }
        if webhook_id:
            query["webhook_id"] = webhook_id
        async with self.session.get("/api/deliveries/wait", params=query) as response:
            waited = await response.json()
        assert waited["complete"], f"{waited['count']} of {count} webhooks within {within} s"
        items: list[dict[str, Any]] = waited["items"]
        return items[::-1]

    async def configure(self, path: str, **settings: Any) -> None:
        """Replace the settings at a path, such as /api/mails/settings."""
        async with self.session.put(path, json=settings) as response:
            assert response.status == 200, await response.text()

    async def received(
        self, path: str, count: int = 1, within: float = 60.0, **query: Any
    ) -> list[dict[str, Any]]:
        """Wait for so many accepted mails (/api/mails) or SMS (/api/sms), oldest first."""
        query |= {"count": count, "timeout": within, "limit": 1000}
        async with self.session.get(f"{path}/wait", params=query) as response:
            waited = await response.json()
        assert waited["complete"], f"{waited['count']} of {count} at {path} within {within} s"
        items: list[dict[str, Any]] = waited["items"]
        return items[::-1]

    async def get(self, path: str, **query: Any) -> Any:
        """Get JSON from a path."""
        async with self.session.get(path, params=query) as response:
            assert response.status == 200, await response.text()
            return await response.json()


@asynccontextmanager
async def running_sandbox(
    amqp_url: str = "amqp://127.0.0.1:1/", **settings: Any
) -> AsyncIterator[Sandbox]:
    """Run a sandbox for the length of the block; its producers publish to that broker."""
    async with (
        serving(SandboxSettings(port=0, smtp_port=0, **settings), amqp_url) as urls,
        aiohttp.ClientSession(urls.http, timeout=aiohttp.ClientTimeout(total=60)) as session,
    ):
        yield Sandbox(urls, session)
