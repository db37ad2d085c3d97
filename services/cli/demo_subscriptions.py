"""The fourth part of the demonstration: users of the messenger, and endpoints of customers."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

import aiohttp
import click

from services.cli.output import echo

# Seconds for all of it on a slow machine.
SUBSCRIPTIONS_TIMEOUT: Final = 60
# Seconds until the sandbox has received a webhook.
DELIVERY_TIMEOUT: Final = 45
# Seconds until a long poll is surely open. It would also return an earlier message.
OPENING: Final = 0.5
# Not secret: its users exist only in the demonstration.
PASSWORD: Final = "correct horse"  # noqa: S105
# Messages that are sent while the endpoint is disabled.
MISSED: Final = 3


async def show_subscriptions(sandbox: str, gateway: str, page: str) -> None:
    """Let two users write to each other, let an endpoint fail, and print what they receive.

    page: the URL of the sandbox in printed links.

    Raises:
        click.ClickException: the gateway rejected a request, or a receiver got something wrong.
        TimeoutError: a step took too long.
    """
    run = uuid4().hex[:6]
    echo(
        "\nDemonstration, part 4: user events, and endpoints of customers\n"
        "  13 two users write to each other: Bob has a callback, Ann a long poll\n"
        "  14 Bob's callback moves to another URL\n"
        "  15 a customer's endpoint that selects invoice.*\n"
        f"  16 the endpoint responds with 410, and a replay sends the {MISSED} messages it missed\n"
    )
    async with (
        asyncio.timeout(SUBSCRIPTIONS_TIMEOUT),
        aiohttp.ClientSession(gateway) as http,
        aiohttp.ClientSession(sandbox) as outside,
    ):
        mailboxes = _Mailboxes(outside, sandbox, run)
        await asyncio.gather(
            _show_users(_Api(http), mailboxes, run), _show_endpoint(_Api(http), mailboxes, run)
        )
    echo(f"     All of these webhooks: {page}/?mailbox=bob-{run} and {page}/?mailbox=shop-{run}")


@dataclass(frozen=True, slots=True)
class _Api:
    """The gateway."""

    http: aiohttp.ClientSession

    async def __call__(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request, and return its response."""
        async with self.http.request(method, path, json=body) as response:
            text = await response.text()
        content = json.loads(text) if text else {}
        if not response.ok:
            reason = content.get("detail") or content["description"]
            raise click.ClickException(f"The gateway rejected {method} {path}: {reason}")
        return content


@dataclass(frozen=True, slots=True)
class _Mailboxes:
    """The receivers of this run. The sandbox verifies signatures with their secrets."""

    http: aiohttp.ClientSession
    sandbox: str
    run: str

    def url(self, name: str) -> str:
        """Return the URL of a receiver."""
        return f"{self.sandbox}/hooks/{name}-{self.run}"

    async def configure(self, name: str, **settings: Any) -> None:
        """Replace the settings of a receiver."""
        async with self.http.put(f"/api/mailboxes/{name}-{self.run}", json=settings) as response:
            response.raise_for_status()

    async def webhooks(self, name: str, count: int) -> Sequence[dict[str, Any]]:
        """Wait for this many webhooks of a receiver, and return them, oldest first."""
        query: dict[str, str | int] = {"mailbox": f"{name}-{self.run}", "count": count}
        query["timeout"] = DELIVERY_TIMEOUT
        async with self.http.get("/api/deliveries/wait", params=query) as response:
            waited = json.loads(await response.text())
        if not waited["complete"]:
            raise TimeoutError(
                f"the sandbox received {waited['count']} of {count} webhooks for {name}"
            )
        items: list[dict[str, Any]] = waited["items"]
        return items[::-1]


@dataclass(frozen=True, slots=True)
class _User:
    """A user who is signed in."""

    api: _Api
    id: int
    token: str

    @classmethod
    async def register(cls, api: _Api, name: str) -> "_User":
        """Register a user, and sign in."""
        proof = {"name": name, "password": PASSWORD}
        user_id = (await api("POST", "/users", proof))["user_id"]
        return cls(api, user_id, (await api("POST", "/users/login", proof))["token"])

    async def call(self, path: str, **fields: Any) -> Any:
        """Send a request with the token of the user."""
        return await self.api("POST", path, {"token": self.token, **fields})

    async def send(self, to: "_User", text: str) -> float:
        """Send a message, and return the Unix time before that."""
        now = time.time()
        await self.call("/messages", to_id=to.id, text=text)
        return now

    async def start_callback(self, mailboxes: _Mailboxes, name: str) -> None:
        """Register a receiver as callback, and configure it with the secret in the response."""
        await mailboxes.configure(name, verify=False)
        started = await self.call("/events/callback/start", callback=mailboxes.url(name))
        await mailboxes.configure(name, secrets=[started["secret"]])


async def _show_users(api: _Api, mailboxes: _Mailboxes, run: str) -> None:
    ann, bob = await asyncio.gather(
        _User.register(api, f"ann-{run}"), _User.register(api, f"bob-{run}")
    )
    await bob.start_callback(mailboxes, "bob")
    poll = asyncio.create_task(ann.call("/events/polling"))
    await asyncio.sleep(OPENING)

    sent = await ann.send(bob, "Hello Bob")
    [pushed] = await mailboxes.webhooks("bob", 1)
    late = datetime.fromisoformat(pushed["received_at"]).timestamp() - sent
    event = json.loads(pushed["body"])
    _print(
        13,
        f"Bob's callback received “{event['event']['text']}” {late * 1000:.0f} ms after Ann sent"
        f" it, with sequence {pushed['headers']['x-ringback-sequence']}; {_signatures(pushed)}",
    )
    sent = await bob.send(ann, "Hello Ann")
    polled = await poll
    late = time.time() - sent
    _print(
        13,
        f"Ann's poll returned “{polled['event']['text']}” {late * 1000:.0f} ms after Bob sent it",
    )
    polled = await bob.call("/events/polling")
    if {name: polled[name] for name in event} != event:
        raise click.ClickException("Bob's poll and his callback received different events")
    _print(13, "Bob's poll also returns the event of his callback: both read one stream")

    await bob.start_callback(mailboxes, "moved")
    for name, count in (("bob", 2), ("moved", 1)):
        webhook = (await mailboxes.webhooks(name, count))[-1]
        content = json.loads(webhook["body"])
        old, new = (content["event"][key].rpartition("/")[2] for key in ("old", "new"))
        # The new receiver may have received it before it got its secret.
        checked = f"; {_signatures(webhook)}" if name == "bob" else ""
        _print(14, f"{mailboxes.url(name)} received {content['type']}: {old} → {new}{checked}")


async def _show_endpoint(api: _Api, mailboxes: _Mailboxes, run: str) -> None:
    endpoints = []
    try:
        for name, event_type in (("shop", "invoice.*"), ("reports", "endpoint.disabled")):
            body = {"url": mailboxes.url(name), "event_types": [event_type]}
            endpoints.append(await api("POST", "/v1/endpoints", body))
            await mailboxes.configure(name, secrets=[endpoints[-1]["secret"]])
        await _filter(api, mailboxes, run)
        await _fail_and_replay(api, mailboxes, run, endpoints[0])
    finally:  # messages of the next demonstration must not reach these endpoints
        for endpoint in endpoints:
            await api("DELETE", f"/v1/endpoints/{endpoint['id']}")


async def _filter(api: _Api, mailboxes: _Mailboxes, run: str) -> None:
    for event_type in ("order.paid", "invoice.created"):
        await _send(api, f"{run}-{event_type}", event_type)
    [webhook] = await mailboxes.webhooks("shop", 1)
    _print(
        15,
        "of order.paid and invoice.created it received"
        f" {webhook['webhook_id'].removeprefix(f'{run}-')}; {_signatures(webhook)}",
    )


async def _fail_and_replay(api: _Api, mailboxes: _Mailboxes, run: str, endpoint: Any) -> None:
    path = f"/v1/endpoints/{endpoint['id']}"
    secrets = [endpoint["secret"]]
    await mailboxes.configure("shop", secrets=secrets, behaviour={"kind": "fail", "status": 410})
    ids = [f"{run}-{number}" for number in range(1, MISSED + 1)]
    await _send(api, ids[0])
    [report] = await mailboxes.webhooks("reports", 1)
    kind, status = json.loads(report["body"])["type"], (await api("GET", path))["status"]
    _print(16, f"it responded with 410: it is {status}, and another endpoint received {kind}")
    for message_id in ids[1:]:
        await _send(api, message_id)
    await mailboxes.configure("shop", secrets=secrets)
    await api("PATCH", path, {"status": "active"})
    await api("POST", f"{path}/replay", {"since": endpoint["created_at"]})
    replayed = (await mailboxes.webhooks("shop", 2 + MISSED))[2:]
    if sorted(webhook["webhook_id"] for webhook in replayed) != ids:
        raise click.ClickException("the replay did not send each message once")
    _print(16, f"active again: one replay sent the {len(ids)} messages; {_signatures(*replayed)}")


async def _send(api: _Api, message_id: str, event_type: str = "invoice.paid") -> None:
    body = {"id": message_id, "event_type": event_type, "payload": {"total": "12.50"}}
    await api("POST", "/v1/messages", body)


def _signatures(*webhooks: dict[str, Any]) -> str:
    faults = [fault for webhook in webhooks for fault in webhook["faults"]]
    return f"signatures not valid: {'; '.join(faults)}" if faults else "signatures verified"


def _print(number: int, text: str) -> None:
    echo(f"  {number} {text}")
