"""The second half of the demonstration: from a producer's event to e-mails and an SMS."""

import asyncio
import json
import time
from typing import Any, Final
from uuid import uuid4

import aiohttp
import click

from services.cli.broker import publishing
from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage
from shared.contracts.posting_requests import PostingState, PostingStatus
from shared.contracts.postings import POSTING, Posting
from shared.settings import Settings
from shared.topology import POSTING_KEY, POSTINGS

# Seconds: some 1,200 e-mails, on a slow machine.
PATIENCE: Final = 60
# Seconds between two questions how far a posting is.
EVERY: Final = 0.2
# Seconds that the late confirmation is late: it is good for 120.
LATE: Final = 180
ENDED: Final = (PostingState.DONE, PostingState.FAILED, PostingState.EXPIRED)


async def show_postings(settings: Settings, sandbox: str, gateway: str) -> None:
    """Have two producers say what happened, and a phone confirmed; tell what comes of it.

    Raises:
        TimeoutError: something did not happen in time.
    """
    click.echo(
        "\nAnd from events to people:\n"
        "  5  auth says user_signed_up: a welcome e-mail\n"
        "  6  cinema_scanner says new_movies: an e-mail to every user who wants such\n"
        "  7  a phone is to be confirmed by SMS, within 120 seconds\n"
        f"  8  another, but {LATE} seconds ago\n"
    )
    async with (
        asyncio.timeout(PATIENCE),
        aiohttp.ClientSession(sandbox) as outside,
        aiohttp.ClientSession(gateway) as http,
    ):
        await asyncio.gather(
            _welcome(outside, sandbox),
            _new_movies(outside, http, sandbox),
            _confirmed(outside, http, sandbox),
            _too_late(settings, http),
        )


async def _welcome(outside: aiohttp.ClientSession, sandbox: str) -> None:
    event = await _produced(outside, "auth")
    address = event["details"]["username"]
    mail = await _arrival(outside, "mails", address)
    _say(5, f"“{mail['subject']}” went to {address}: {sandbox}/mails/{mail['number']}")


async def _new_movies(
    outside: aiohttp.ClientSession, http: aiohttp.ClientSession, sandbox: str
) -> None:
    event = uuid4().hex
    started = time.monotonic()
    await _produced(outside, "cinema_scanner", event_id=event)
    status = await _ended(http, await _from_event(http, event))
    seconds = time.monotonic() - started
    why = ", ".join(f"{count} {why}" for why, count in sorted(status.skipped.items()))
    counts = {state.value: count for state, count in status.messages.items() if count}
    sent = counts.pop("sent", 0)
    _say(
        6,
        f"{sent} e-mails for {status.receivers} users in {seconds:.1f} s: {sandbox}/mails"
        + "".join(f"; {count} {state}" for state, count in counts.items())
        + (f" ({why})" if why else ""),
    )


async def _confirmed(
    outside: aiohttp.ClientSession, http: aiohttp.ClientSession, sandbox: str
) -> None:
    user = await _reachable(outside)
    async with http.post("/v1/postings", json=_confirmation(user["id"])) as answer:
        accepted = json.loads(await answer.text())
        if not answer.ok:
            raise click.ClickException(f"the gateway did not take 7: {accepted['detail']}")
    sms = await _arrival(outside, "sms", user["phone"])
    _say(7, f"posting {accepted['id']}: “{sms['text'].strip()}” went out: {sandbox}/sms")


async def _too_late(settings: Settings, http: aiohttp.ClientSession) -> None:
    posting = str(uuid4())
    # To whomever: nobody is looked for, since its time is over.
    order = Posting.model_validate(_confirmation(str(uuid4())))
    async with publishing(settings) as publisher:
        await publisher.publish(
            OutgoingMessage(
                POSTING_KEY,
                Properties(
                    content_type="application/json",
                    type=POSTING,
                    message_id=posting,
                    delivery_mode=PERSISTENT,
                    timestamp=int(time.time()) - LATE,
                ),
                order.model_dump_json(exclude_defaults=True).encode(),
                exchange=POSTINGS,
            )
        )
    status = await _ended(http, posting)
    _say(8, f"posting {posting}: {status.status}, nothing was sent")


def _confirmation(user_id: str) -> dict[str, Any]:
    return {
        "receivers": f"http://auth/api/v1/users/?id={user_id}",
        "template": "sms/phone_confirmation.md",
        "delivery_type": ["sms"],
        "expires_in": "120 sec",
        "template_context": {"secret_code": "1234"},
    }


async def _produced(outside: aiohttp.ClientSession, producer: str, **given: Any) -> dict[str, Any]:
    """Have a producer of the sandbox publish an event; what it says."""
    async with outside.post(f"/api/producers/{producer}", json=given) as answer:
        said = json.loads(await answer.text())
        if not answer.ok:
            raise click.ClickException(f"{producer} could not publish: {said['detail']}")
    event: dict[str, Any] = said["events"][0]
    return event


async def _reachable(outside: aiohttp.ClientSession) -> dict[str, Any]:
    """A user of the directory who can be sent SMS."""
    wanted = {"is_active": "True", "sms_notifications": "True"}
    async with outside.get("/auth/api/v1/users/", params=wanted) as answer:
        users: list[dict[str, Any]] = json.loads(await answer.text())
    return next(user for user in users if user["phone"] and user["timezone"] == "Europe/Moscow")


async def _arrival(outside: aiohttp.ClientSession, inbox: str, to: str) -> dict[str, Any]:
    """Wait at the sandbox until something came for this address."""
    query: dict[str, Any] = {"to": to, "count": 1, "timeout": PATIENCE}
    async with outside.get(f"/api/{inbox}/wait", params=query) as answer:
        waited = json.loads(await answer.text())
    if not waited["complete"]:
        raise TimeoutError(f"nothing came to {to}")
    came: dict[str, Any] = waited["items"][0]
    return came


async def _from_event(http: aiohttp.ClientSession, event: str) -> str:
    """Ask for the posting that came from an event until it is there; its id."""
    while True:
        async with http.get("/v1/postings", params={"from_event": event}) as answer:
            items = json.loads(await answer.text())["items"] if answer.ok else []
        if items:
            return str(items[0]["id"])
        await asyncio.sleep(EVERY)


async def _ended(http: aiohttp.ClientSession, posting: str) -> PostingStatus:
    """Ask how far a posting is until it has ended."""
    while True:
        async with http.get(f"/v1/postings/{posting}") as answer:
            if answer.ok:
                status = PostingStatus.model_validate_json(await answer.read())
                if status.status in ENDED:
                    return status
        await asyncio.sleep(EVERY)


def _say(number: int, text: str) -> None:
    click.echo(f"  {number}  {text}")
