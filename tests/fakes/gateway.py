"""A running gateway as its callers see it: HTTP alone."""

import base64
import hashlib
import hmac
import io
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.fakes.service import START_SECONDS, Service, running
from tests.fakes.waiting import until

TICKET_KEY = "a-ticket-key-canary-of-32-characters"
RUN_GATEWAY = ("-m", "services", "run", "gateway", "--metrics-port", "0")


@dataclass(frozen=True)
class Reply:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    def problem(self, status: int) -> dict[str, Any]:
        """It is this problem, in the right form; its members."""
        assert self.status == status, self.text
        assert self.headers["Content-Type"].startswith("application/problem+json"), self.headers
        members: dict[str, Any] = self.json
        assert members["status"] == status
        assert members.keys() >= {"type", "title", "detail"}
        return members

    def wrong_fields(self) -> set[str]:
        """The fields that a 422 names."""
        return {error["field"] for error in self.problem(422)["errors"]}


class Caller:
    """Calls the gateway, with a ticket or without."""

    def __init__(self, base: str, session: aiohttp.ClientSession, ticket: str | None) -> None:
        self._base = base
        self._session = session
        self._ticket = ticket

    def as_client(self, client_id: str | None) -> "Caller":
        """The same caller with the ticket of this client."""
        return Caller(self._base, self._session, None if client_id is None else ticket(client_id))

    async def __call__(
        self, method: str, path: str, body: Any = None, *, raw: Any = None, **headers: str
    ) -> Reply:
        """Send one request; `body` goes as JSON, `raw` as it is."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if self._ticket is not None:
            given.setdefault("X-Service-Ticket", self._ticket)
        if body is not None:
            raw = json.dumps(body)
        if isinstance(raw, str):
            raw = raw.encode()
        if isinstance(raw, bytes):
            raw = io.BytesIO(raw)  # aiohttp warns of large bodies in one piece
        if raw is not None:
            given.setdefault("Content-Type", "application/json")
        async with self._session.request(
            method, self._base + path, data=raw, headers=given, allow_redirects=False
        ) as answer:
            return Reply(answer.status, answer.headers.copy(), await answer.text(errors="replace"))


def ticket(client_id: str, *, key: str = TICKET_KEY, **claims: Any) -> str:
    """Make a ticket as a caller would who knows the key, with no code of ours."""
    header = {"alg": "HS256", "typ": "JWT"}
    payload = {"sub": client_id, "aud": "ringback", "exp": int(time.time()) + 600} | claims
    signed = f"{_part(header)}.{_part(payload)}"
    signature = hmac.new(key.encode(), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{_encoded(signature)}"


def _part(content: Mapping[str, Any]) -> str:
    return _encoded(json.dumps(content).encode())


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextmanager
def gateway(
    directory: Path, amqp_url: str, settings: Mapping[str, str] | None = None, *arguments: str
) -> Iterator[Service]:
    """A gateway process for the length of the block."""
    given = {"RINGBACK_HTTP_PORT": "0", "RINGBACK_TICKET_KEY": TICKET_KEY} | dict(settings or {})
    with running(directory, amqp_url, given, (*RUN_GATEWAY, *arguments)) as service:
        yield service


async def base_url(service: Service) -> str:
    """Where its HTTP interface is."""
    await until(lambda: service.exited() or service.logged("http on port"), START_SECONDS)
    assert service.logged("http on port"), service.output
    return f"http://127.0.0.1:{service.logged('http on port')[-1]['port']}"


@asynccontextmanager
async def calling(base: str) -> AsyncIterator[Caller]:
    """An anonymous caller."""
    async with aiohttp.ClientSession() as session:
        yield Caller(base, session, None)
