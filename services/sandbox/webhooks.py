"""The webhook receiver: the endpoints that receive webhooks, and the API of mailboxes."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from services.sandbox.behaviours import Behaviour, Delay, MailboxSettings
from services.sandbox.domain import SignatureCheck, check_signatures
from services.sandbox.layout import HEADERS
from services.sandbox.page import render
from services.sandbox.parsing import parse
from services.sandbox.responses import respond
from services.sandbox.store import MAX_DELIVERIES, MAX_STORED_BYTES, Delivery, Mailbox, Store

MAX_SHOWN = 50
_NAME = r"{mailbox:[\w.~-]{1,64}}"


class Filter(BaseModel):
    """A selection of deliveries; an omitted field selects all."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    mailbox: str | None = None
    webhook_id: str | None = None
    limit: int = Field(MAX_SHOWN, ge=1, le=MAX_DELIVERIES)


class Wait(BaseModel):
    """A number of deliveries to wait for, and a timeout in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    mailbox: str
    webhook_id: str | None = None
    count: PositiveInt = 1
    timeout: float = Field(10, gt=0, le=300)


class WebhookReceiver:
    """The HTTP handlers of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def routes(self) -> list[web.RouteDef]:
        """Return every route of the receiver."""
        return [
            web.get("/", self.page),
            web.route("*", f"/hooks/{_NAME}", self.receive),
            web.route("*", f"/hooks/{_NAME}/{{rest:.*}}", self.receive),
            web.get("/api/deliveries", self.list_deliveries),
            web.delete("/api/deliveries", self.clear_deliveries),
            web.get("/api/deliveries/wait", self.wait_for_deliveries),
            web.get("/api/mailboxes", self.list_mailboxes),
            web.get(f"/api/mailboxes/{_NAME}", self.show_mailbox),
            web.put(f"/api/mailboxes/{_NAME}", self.configure_mailbox),
            web.delete(f"/api/mailboxes/{_NAME}", self.remove_mailbox),
        ]

    async def receive(self, request: web.Request) -> web.StreamResponse:
        """Check and record a webhook, and respond with the behaviour of the mailbox."""
        mailbox = self._store.mailbox(request.match_info["mailbox"])
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            unread = SignatureCheck((), (error.text or "too large",))
            self._record(request, mailbox, b"", signatures=unread, status=error.status)
            raise
        # With `format: query` there is no body, and the query is signed instead.
        has_body = body or "Content-Type" in request.headers
        signed = body if has_body else request.rel_url.raw_query_string.encode()
        signatures = check_signatures(request.headers, signed, mailbox.keys, time.time())
        webhook_id = request.headers.get("webhook-id")
        behaviour = mailbox.next_behaviour(webhook_id)
        usual = 200 if signatures.verified or not mailbox.settings.verify else 401
        status = usual if behaviour is None or isinstance(behaviour, Delay) else behaviour.status
        self._record(
            request, mailbox, body, signatures=signatures, status=status, behaviour=behaviour
        )

        if isinstance(behaviour, Delay):
            await asyncio.sleep(behaviour.seconds)
        elif behaviour is not None:
            return await respond(behaviour, request)
        result: dict[str, Any] = {
            "received": True,
            "verified": signatures.verified,
            "id": webhook_id,
        }
        if signatures.faults:
            result["faults"] = signatures.faults
        return web.json_response(result, status=usual)

    def _record(  # noqa: PLR0913 - the fields of a delivery
        self,
        request: web.Request,
        mailbox: Mailbox,
        body: bytes,
        *,
        signatures: SignatureCheck,
        status: int | None,
        behaviour: Behaviour | None = None,
    ) -> None:
        webhook_id = request.headers.get("webhook-id")
        mailbox.received += 1
        mailbox.verified += signatures.verified
        self._store.record(
            Delivery(
                number=self._store.next_number(),
                received_at=time.time(),
                mailbox=mailbox.name,
                method=request.method,
                path=request.raw_path,
                headers=_bounded(request.headers),
                body=body[:MAX_STORED_BYTES],
                body_size=len(body),
                webhook_id=webhook_id,
                attempt=mailbox.attempts.add(webhook_id) if webhook_id else None,
                signatures=signatures,
                status=status,
                behaviour=behaviour.kind if behaviour else None,
            )
        )

    async def page(self, request: web.Request) -> web.Response:
        """Return the page of deliveries."""
        mailbox = request.query.get("mailbox") or None
        deliveries = list(islice(self._store.deliveries(mailbox), MAX_SHOWN))
        html = render(list(self._store.mailboxes.values()), deliveries, mailbox, request.url)
        return web.Response(body=html, headers=HEADERS)

    async def list_deliveries(self, request: web.Request) -> web.Response:
        """Return the stored deliveries that match, newest first."""
        query = parse(Filter, request.query)
        return web.json_response({"items": self._matching(query)})

    async def wait_for_deliveries(self, request: web.Request) -> web.Response:
        """Respond when enough deliveries were received, or with `complete` false on timeout."""
        query = parse(Wait, request.query)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(query.timeout):
                await self._store.wait(query.mailbox, query.webhook_id, query.count)
        count = self._store.count(query.mailbox, query.webhook_id)
        shown = Filter(mailbox=query.mailbox, webhook_id=query.webhook_id, limit=MAX_DELIVERIES)
        return web.json_response(
            {
                "complete": count >= query.count,
                "count": count,
                "items": self._matching(shown),
            }
        )

    async def clear_deliveries(self, request: web.Request) -> web.Response:
        """Delete deliveries and counters, of one mailbox or all; keep the settings."""
        self._store.clear(request.query.get("mailbox") or None)
        return web.Response(status=204)

    async def list_mailboxes(self, _request: web.Request) -> web.Response:
        """Return the counters and settings of every mailbox."""
        boxes = sorted(self._store.mailboxes.values(), key=lambda box: box.name)
        return web.json_response({"items": [_mailbox_json(box) for box in boxes]})

    async def show_mailbox(self, request: web.Request) -> web.Response:
        """Return one mailbox; an unused one has the default settings."""
        name = request.match_info["mailbox"]
        return web.json_response(_mailbox_json(self._store.mailboxes.get(name) or Mailbox(name)))

    async def configure_mailbox(self, request: web.Request) -> web.Response:
        """Replace the settings of a mailbox."""
        settings = parse(MailboxSettings, await request.read())
        mailbox = self._store.mailbox(request.match_info["mailbox"])
        mailbox.configure(settings)
        return web.json_response(_mailbox_json(mailbox))

    async def remove_mailbox(self, request: web.Request) -> web.Response:
        """Delete a mailbox with its settings, counters and deliveries."""
        self._store.remove(request.match_info["mailbox"])
        return web.Response(status=204)

    def _matching(self, query: Filter) -> list[dict[str, Any]]:
        found = self._store.deliveries(query.mailbox, query.webhook_id)
        return [_delivery_json(delivery) for delivery in islice(found, query.limit)]


def _bounded(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the first `MAX_STORED_BYTES` bytes of headers, with lower-case names."""
    kept: dict[str, str] = {}
    room = MAX_STORED_BYTES
    for name, value in headers.items():
        room -= len(name) + len(value)
        if room < 0:
            break
        kept[name.lower()] = value
    return kept


def _mailbox_json(mailbox: Mailbox) -> dict[str, Any]:
    return {
        "name": mailbox.name,
        "received": mailbox.received,
        "verified": mailbox.verified,
        # Secrets are SecretStr, which JSON shows as asterisks.
        "settings": mailbox.settings.model_dump(mode="json"),
    }


def _delivery_json(delivery: Delivery) -> dict[str, Any]:
    return {
        "number": delivery.number,
        "received_at": datetime.fromtimestamp(delivery.received_at, UTC).isoformat(),
        "mailbox": delivery.mailbox,
        "method": delivery.method,
        "path": delivery.path,
        "webhook_id": delivery.webhook_id,
        "attempt": delivery.attempt,
        "verified": delivery.signatures.verified,
        "matched": delivery.signatures.matched,
        "faults": delivery.signatures.faults,
        "status": delivery.status,
        "behaviour": delivery.behaviour,
        "headers": delivery.headers,
        "body": delivery.body.decode(errors="replace"),
        "body_size": delivery.body_size,
    }
