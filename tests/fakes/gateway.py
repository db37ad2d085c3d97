"""A running gateway, used only over HTTP."""

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
# A callback that is not due during the tests.
CALLBACK = {"url": "https://example.com/hook", "run_at": "2030-01-01T12:00:00Z"}
RUN_GATEWAY = ("-m", "services", "run", "gateway", "--metrics-port", "0")


@dataclass(frozen=True)
class Response:
    """An HTTP response."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    def problem(self, status: int) -> dict[str, Any]:
        """Check that this is a well-formed problem with this status; return its members."""
        assert self.status == status, self.text
        assert self.headers["Content-Type"].startswith("application/problem+json"), self.headers
        members: dict[str, Any] = self.json
        assert members["status"] == status
        assert members.keys() >= {"type", "title", "detail"}
        return members

    def rejected_fields(self) -> set[str]:
        """Return the fields that a 422 names."""
        return {error["field"] for error in self.problem(422)["errors"]}


class Caller:
    """A client of the gateway, with or without a ticket."""

    def __init__(self, base: str, session: aiohttp.ClientSession, ticket: str | None) -> None:
        self._base = base
        self._session = session
        self._ticket = ticket

    def as_client(self, client_id: str | None) -> "Caller":
        """Return a caller with the ticket of this client."""
        return Caller(self._base, self._session, None if client_id is None else ticket(client_id))

    async def __call__(
        self, method: str, path: str, body: Any = None, *, raw: Any = None, **headers: str
    ) -> Response:
        """Send a request; `body` is sent as JSON, `raw` unchanged."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self._ticket is not None:
            sent.setdefault("X-Service-Ticket", self._ticket)
        if body is not None:
            raw = json.dumps(body)
        if isinstance(raw, str):
            raw = raw.encode()
        if isinstance(raw, bytes):
            raw = io.BytesIO(raw)  # aiohttp warns about large bodies in one piece
        if raw is not None:
            sent.setdefault("Content-Type", "application/json")
        async with self._session.request(
            method, self._base + path, data=raw, headers=sent, allow_redirects=False
        ) as response:
            text = await response.text(errors="replace")
            return Response(response.status, response.headers.copy(), text)


def ticket(client_id: str, *, key: str = TICKET_KEY, **claims: Any) -> str:
    """Create a ticket without code of the product, as a caller with the key would."""
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
    """Run a gateway process while the context lasts."""
    given = {"RINGBACK_HTTP_PORT": "0", "RINGBACK_TICKET_KEY": TICKET_KEY} | dict(settings or {})
    with running(directory, amqp_url, given, (*RUN_GATEWAY, *arguments)) as service:
        yield service


async def base_url(service: Service) -> str:
    """Return the URL of its HTTP API."""
    await until(lambda: service.exited() or service.logged("http on port"), START_SECONDS)
    assert service.logged("http on port"), service.output
    return f"http://127.0.0.1:{service.logged('http on port')[-1]['port']}"


@asynccontextmanager
async def calling(base: str) -> AsyncIterator[Caller]:
    """Yield an anonymous caller."""
    async with aiohttp.ClientSession() as session:
        yield Caller(base, session, None)
