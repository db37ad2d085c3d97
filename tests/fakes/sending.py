"""The real HTTP client for tests: it may call this machine."""

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
TIMEOUT = 1.0  # seconds for each request, unless a test sets another value
BODY = b'{"hello": "world"}'


@asynccontextmanager
async def client(**options: object) -> AsyncIterator[Client]:
    guard = Guard(LOOPBACK_NETWORKS)
    async with Client(guard, user_agent="Ringback/test", **options) as http_client:  # type: ignore[arg-type]
        yield http_client


async def post(
    sender: Client, url: str, *, body: bytes = BODY, seconds: float = TIMEOUT
) -> HttpResponse:
    headers = {"Content-Type": "application/json", "X-Signature": "abc"}
    return await sender.send(parse_target(url), "POST", headers, body, seconds)


async def failure(sender: Client, url: str, seconds: float = TIMEOUT) -> RequestFailedError:
    with pytest.raises(RequestFailedError) as caught:
        await post(sender, url, seconds=seconds)
    return caught.value


@asynccontextmanager
async def client_of(name_server: str) -> AsyncIterator[Client]:
    """Yield a client that uses `name_server` and may call only 127.0.0.2, like a public address."""
    resolver = aiohttp.AsyncResolver(nameservers=[name_server], timeout=10.0, tries=1)
    guard = Guard((ip_network("127.0.0.2/32"),))
    async with Client(guard, user_agent="test", dns_ttl=0, resolver=resolver) as http_client:
        yield http_client
