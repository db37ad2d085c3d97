"""How tests send through the real HTTP client, which may call this machine here."""

from __future__ import annotations

from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import TYPE_CHECKING

import aiohttp
import pytest

from shared.http.client import Client, HttpResponse, RequestFailedError
from shared.http.guard import Guard, parse_target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LOOPBACK_NETWORKS = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
TOTAL = 1.0  # seconds for each request, unless the test says otherwise
BODY = b'{"hello": "world"}'


@asynccontextmanager
async def client(**options: object) -> AsyncIterator[Client]:
    guard = Guard(LOOPBACK_NETWORKS)
    async with Client(guard, user_agent="Ringback/test", **options) as it:  # type: ignore[arg-type]
        yield it


async def post(
    sender: Client, url: str, *, body: bytes = BODY, total: float = TOTAL
) -> HttpResponse:
    headers = {"Content-Type": "application/json", "X-Signature": "abc"}
    return await sender.send(parse_target(url), "POST", headers, body, total)


async def failure(sender: Client, url: str, **options: float) -> RequestFailedError:
    with pytest.raises(RequestFailedError) as caught:
        await post(sender, url, total=options.get("total", TOTAL))
    return caught.value


@asynccontextmanager
async def client_of(name_server: str) -> AsyncIterator[Client]:
    """A client that may call 127.0.0.2 only, plays that it is public, and asks `name_server`."""
    resolver = aiohttp.AsyncResolver(nameservers=[name_server], timeout=2.0, tries=1)
    guard = Guard((ip_network("127.0.0.2/32"),))
    async with Client(guard, user_agent="test", dns_ttl=0, resolver=resolver) as it:
        yield it
