"""The webhook receiver: takes hooks and orders over HTTP, and tells what came."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from services.sandbox.domain import Verdict, judge
from services.sandbox.layout import HEADERS
from services.sandbox.misbehaviour import misbehave
from services.sandbox.orders import Behaviour, Delay, Order
from services.sandbox.page import render
from services.sandbox.parsing import parsed
from services.sandbox.store import KEPT_BYTES, KEPT_DELIVERIES, Delivery, Mailbox, Store

SHOWN_ON_PAGE = 50
_NAME = r"{mailbox:[\w.~-]{1,64}}"


class Filter(BaseModel):
    """Which deliveries are asked for; what is left out does not narrow them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    mailbox: str | None = None
    webhook_id: str | None = None
    limit: int = Field(SHOWN_ON_PAGE, ge=1, le=KEPT_DELIVERIES)


class Wait(BaseModel):
    """What to wait for, and for how many seconds at most."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    mailbox: str
    webhook_id: str | None = None
    count: PositiveInt = 1
    timeout: float = Field(10, gt=0, le=300)


class WebhookReceiver:
    """The HTTP handlers around one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def routes(self) -> list[web.RouteDef]:
        """Return every route of the receiver."""
        return [
            web.get("/", self.page),
            web.route("*", f"/hooks/{_NAME}", self.receive),
            web.route("*", f"/hooks/{_NAME}/{{rest:.*}}", self.receive),
            web.get("/api/deliveries", self.list_deliveries),
            web.delete("/api/deliveries", self.forget_deliveries),
            web.get("/api/deliveries/wait", self.wait_for_deliveries),
            web.get("/api/mailboxes", self.list_mailboxes),
            web.get(f"/api/mailboxes/{_NAME}", self.show_mailbox),
            web.put(f"/api/mailboxes/{_NAME}", self.order_mailbox),
            web.delete(f"/api/mailboxes/{_NAME}", self.remove_mailbox),
        ]

    async def receive(self, request: web.Request) -> web.StreamResponse:
        """Take a webhook: judge it, keep it, and answer as the mailbox's order says."""
        mailbox = self._store.mailbox(request.match_info["mailbox"])
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            unread = Verdict((), (error.text or "too large",))
            self._keep(request, mailbox, b"", verdict=unread, status=error.status)
            raise
        verdict = judge(request.headers, body, mailbox.keys, time.time())
        webhook_id = request.headers.get("webhook-id")
        behaviour = mailbox.behaviour_for(webhook_id)
        usual = 200 if verdict.verified or not mailbox.order.verify else 401
        status = usual if behaviour is None or isinstance(behaviour, Delay) else behaviour.status
        self._keep(request, mailbox, body, verdict=verdict, status=status, behaviour=behaviour)

        if isinstance(behaviour, Delay):
            await asyncio.sleep(behaviour.seconds)
        elif behaviour is not None:
            return await misbehave(behaviour, request)
        answer: dict[str, Any] = {"received": True, "verified": verdict.verified, "id": webhook_id}
        if verdict.faults:
            answer["faults"] = verdict.faults
        return web.json_response(answer, status=usual)

    def _keep(  # noqa: PLR0913 - one line of each delivery's record
        self,
        request: web.Request,
        mailbox: Mailbox,
        body: bytes,
        *,
        verdict: Verdict,
        status: int | None,
        behaviour: Behaviour | None = None,
    ) -> None:
        webhook_id = request.headers.get("webhook-id")
        mailbox.received += 1
        mailbox.verified += verdict.verified
        self._store.keep(
            Delivery(
                number=self._store.next_number(),
                received_at=time.time(),
                mailbox=mailbox.name,
                method=request.method,
                path=request.raw_path,
                headers=_bounded(request.headers),
                body=body[:KEPT_BYTES],
                body_size=len(body),
                webhook_id=webhook_id,
                try_number=mailbox.tries.add(webhook_id) if webhook_id else None,
                verdict=verdict,
                status=status,
                behaviour=behaviour.kind if behaviour else None,
            )
        )

    async def page(self, request: web.Request) -> web.Response:
        """Show what came to a person."""
        mailbox = request.query.get("mailbox") or None
        deliveries = list(islice(self._store.deliveries(mailbox), SHOWN_ON_PAGE))
        html = render(list(self._store.mailboxes.values()), deliveries, mailbox, request.url)
        return web.Response(body=html, headers=HEADERS)

    async def list_deliveries(self, request: web.Request) -> web.Response:
        """Answer with the kept deliveries that match, newest first."""
        wanted = parsed(Filter, request.query)
        return web.json_response({"items": self._matching(wanted)})

    async def wait_for_deliveries(self, request: web.Request) -> web.Response:
        """Answer as soon as enough came, or at the time-out with ``complete`` false."""
        wanted = parsed(Wait, request.query)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wanted.timeout):
                await self._store.wait(wanted.mailbox, wanted.webhook_id, wanted.count)
        count = self._store.count(wanted.mailbox, wanted.webhook_id)
        shown = Filter(mailbox=wanted.mailbox, webhook_id=wanted.webhook_id, limit=KEPT_DELIVERIES)
        return web.json_response(
            {
                "complete": count >= wanted.count,
                "count": count,
                "items": self._matching(shown),
            }
        )

    async def forget_deliveries(self, request: web.Request) -> web.Response:
        """Forget deliveries and counters, of one mailbox or all; orders stay."""
        self._store.forget(request.query.get("mailbox") or None)
        return web.Response(status=204)

    async def list_mailboxes(self, _request: web.Request) -> web.Response:
        """Answer with every mailbox: counters and order."""
        boxes = sorted(self._store.mailboxes.values(), key=lambda box: box.name)
        return web.json_response({"items": [_mailbox_json(box) for box in boxes]})

    async def show_mailbox(self, request: web.Request) -> web.Response:
        """Answer with one mailbox; one that was never used is shown as it would begin."""
        name = request.match_info["mailbox"]
        return web.json_response(_mailbox_json(self._store.mailboxes.get(name) or Mailbox(name)))

    async def order_mailbox(self, request: web.Request) -> web.Response:
        """Take an order in place of the one before."""
        order = parsed(Order, await request.read())
        mailbox = self._store.mailbox(request.match_info["mailbox"])
        mailbox.obey(order)
        return web.json_response(_mailbox_json(mailbox))

    async def remove_mailbox(self, request: web.Request) -> web.Response:
        """Make a mailbox as if it had never been used."""
        self._store.remove(request.match_info["mailbox"])
        return web.Response(status=204)

    def _matching(self, wanted: Filter) -> list[dict[str, Any]]:
        found = self._store.deliveries(wanted.mailbox, wanted.webhook_id)
        return [_delivery_json(delivery) for delivery in islice(found, wanted.limit)]


def _bounded(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers, lower-case, as far as ``KEPT_BYTES`` go."""
    kept: dict[str, str] = {}
    room = KEPT_BYTES
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
        # Secrets are SecretStr: they come out as asterisks.
        "order": mailbox.order.model_dump(mode="json"),
    }


def _delivery_json(delivery: Delivery) -> dict[str, Any]:
    return {
        "number": delivery.number,
        "received_at": datetime.fromtimestamp(delivery.received_at, UTC).isoformat(),
        "mailbox": delivery.mailbox,
        "method": delivery.method,
        "path": delivery.path,
        "webhook_id": delivery.webhook_id,
        "try": delivery.try_number,
        "verified": delivery.verdict.verified,
        "matched": delivery.verdict.matched,
        "faults": delivery.verdict.faults,
        "status": delivery.status,
        "behaviour": delivery.behaviour,
        "headers": delivery.headers,
        "body": delivery.body.decode(errors="replace"),
        "body_size": delivery.body_size,
    }
