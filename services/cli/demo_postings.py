"""The second half of the demonstration: from events to e-mails and an SMS."""

import asyncio
import json
import time
from typing import Any, Final
from uuid import uuid4

import aiohttp
import click

from services.cli.broker import publishing
from services.cli.output import echo
from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, Publisher, new_id
from shared.contracts.messages import SendEmail
from shared.contracts.posting_requests import PostingState, PostingStatus
from shared.contracts.postings import POSTING, Posting
from shared.registry import CHANNELS, URGENT
from shared.settings import Settings
from shared.topology import POSTING_KEY, POSTINGS

# Seconds: about 1,200 e-mails on a slow machine.
POSTING_TIMEOUT: Final = 60
# Seconds until an e-mail reaches the sandbox.
CHECK_TIMEOUT: Final = 15
# Seconds between two requests for the status of a posting.
POLL_INTERVAL: Final = 0.2
# Seconds: the age of the expired posting, whose lifetime is 120 s.
EXPIRED_AGE: Final = 180
FINAL_STATES: Final = (PostingState.DONE, PostingState.FAILED, PostingState.EXPIRED)


async def show_postings(
    settings: Settings, sandbox: str, gateway: str, page: str, movies_event: str
) -> None:
    """Publish two events and two postings, and print what follows.

    page: the URL of the sandbox in printed links.
    movies_event: the id of the event that sends an e-mail to every subscriber.

    Raises:
        click.ClickException: e-mails do not reach the sandbox, or a step failed.
        TimeoutError: a step took too long.
    """
    echo(
        "\nDemonstration, part 2: events become e-mails and SMS\n"
        "  5  the event user_signed_up: a welcome e-mail\n"
        "  6  the event new_movies: one e-mail for each subscriber\n"
        "  7  a posting: a confirmation code by SMS, valid for 120 seconds\n"
        f"  8  the same posting, {EXPIRED_AGE} seconds old: it must not be sent\n"
    )
    async with (
        asyncio.timeout(POSTING_TIMEOUT),
        aiohttp.ClientSession(sandbox) as outside,
        aiohttp.ClientSession(gateway) as http,
        publishing(settings) as publisher,
    ):
        await _check_that_e_mails_reach_the_sandbox(publisher, outside)
        await asyncio.gather(
            _new_movies(outside, http, page, movies_event),
            _send_code(outside, http, page),
            _send_expired_code(publisher, http),
        )
        # Last: the sandbox stores 1,000 e-mails, so the link to an earlier one would not work.
        await _welcome(outside, http, page)


async def was_shown(gateway: str, movies_event: str) -> bool:
    """Return whether the posting of this event is done."""
    async with (
        aiohttp.ClientSession(gateway) as http,
        http.get("/v1/postings", params={"from_event": movies_event}) as response,
    ):
        items = json.loads(await response.text())["items"] if response.ok else []
    return any(item["status"] == PostingState.DONE for item in items)


async def _check_that_e_mails_reach_the_sandbox(
    publisher: Publisher, outside: aiohttp.ClientSession
) -> None:
    """Send one e-mail that no real server can deliver, and wait for it at the sandbox."""
    to = f"{uuid4().hex}@sandbox.invalid"  # RFC 2606: this domain never exists
    mail = SendEmail(to=to, subject="A demonstration follows", text="It stays in the sandbox.")
    await publisher.publish(
        OutgoingMessage(
            CHANNELS["email"].queues[URGENT],
            _properties(CHANNELS["email"].type),
            mail.model_dump_json(exclude_defaults=True).encode(),
        )
    )
    try:
        await _received(outside, "mails", to, within=CHECK_TIMEOUT)
    except TimeoutError:
        raise click.ClickException("e-mails do not reach the sandbox") from None


async def _welcome(outside: aiohttp.ClientSession, http: aiohttp.ClientSession, page: str) -> None:
    event = uuid4().hex
    published = await _publish_event(outside, "auth", event_id=event)
    address = published["details"]["username"]
    # The user may also have an e-mail about new movies. After this, the newest one is the welcome.
    await _final_status(http, await _posting_of(http, event))
    mail = await _received(outside, "mails", address)
    _print(5, f"“{mail['subject']}” sent to {address}: {page}/mails/{mail['number']}")


async def _new_movies(
    outside: aiohttp.ClientSession, http: aiohttp.ClientSession, page: str, event: str
) -> None:
    started = time.monotonic()
    await _publish_event(outside, "cinema_scanner", event_id=event)
    status = await _final_status(http, await _posting_of(http, event))
    seconds = time.monotonic() - started
    skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(status.skipped.items()))
    counts = {state.value: count for state, count in status.messages.items() if count}
    sent = counts.pop("sent", 0)
    _print(
        6,
        f"{sent} of {status.receivers} users got an e-mail in {seconds:.1f} s: {page}/mails"
        + "".join(f"; {count} {state}" for state, count in counts.items())
        + (f" ({skipped})" if skipped else ""),
    )


async def _send_code(
    outside: aiohttp.ClientSession, http: aiohttp.ClientSession, page: str
) -> None:
    user = await _sms_user(outside)
    async with http.post("/v1/postings", json=_confirmation(user["id"])) as response:
        accepted = json.loads(await response.text())
        if not response.ok:
            raise click.ClickException(
                f"Cannot publish posting 7: the gateway rejected it: {accepted['detail']}"
            )
    sms = await _received(outside, "sms", user["phone"])
    _print(7, f"posting {accepted['id']}: “{sms['text'].strip()}” sent: {page}/sms")


async def _send_expired_code(publisher: Publisher, http: aiohttp.ClientSession) -> None:
    posting = str(uuid4())
    # Any user id: the users of an expired posting are not fetched.
    command = Posting.model_validate(_confirmation(str(uuid4())))
    await publisher.publish(
        OutgoingMessage(
            POSTING_KEY,
            _properties(POSTING, message_id=posting, age=EXPIRED_AGE),
            command.model_dump_json(exclude_defaults=True).encode(),
            exchange=POSTINGS,
        )
    )
    status = await _final_status(http, posting)
    _print(8, f"posting {posting}: {status.status}, nothing was sent")


def _properties(type_: str, *, message_id: str | None = None, age: int = 0) -> Properties:
    return Properties(
        content_type="application/json",
        type=type_,
        message_id=message_id or new_id(),
        delivery_mode=PERSISTENT,
        timestamp=int(time.time()) - age,
    )


def _confirmation(user_id: str) -> dict[str, Any]:
    return {
        "receivers": f"http://auth/api/v1/users/?id={user_id}",
        "template": "sms/phone_confirmation.md",
        "delivery_type": ["sms"],
        "expires_in": "120 sec",
        "template_context": {"secret_code": "1234"},
    }


async def _publish_event(
    outside: aiohttp.ClientSession, producer: str, **fields: Any
) -> dict[str, Any]:
    """Make a producer of the sandbox publish an event, and return the event."""
    async with outside.post(f"/api/producers/{producer}", json=fields) as response:
        published = json.loads(await response.text())
        if not response.ok:
            raise click.ClickException(
                f"The producer {producer} cannot publish: {published['detail']}"
            )
    event: dict[str, Any] = published["events"][0]
    return event


async def _sms_user(outside: aiohttp.ClientSession) -> dict[str, Any]:
    """Return a user of the sandbox who can receive SMS."""
    wanted = {"is_active": "True", "sms_notifications": "True"}
    async with outside.get("/auth/api/v1/users/", params=wanted) as response:
        users: list[dict[str, Any]] = json.loads(await response.text())
    return next(user for user in users if user["phone"] and user["timezone"] == "Europe/Moscow")


async def _received(
    outside: aiohttp.ClientSession, inbox: str, to: str, *, within: int = POSTING_TIMEOUT
) -> dict[str, Any]:
    """Wait until the sandbox has received a message for this address, and return it."""
    query: dict[str, Any] = {"to": to, "count": 1, "timeout": within}
    async with outside.get(f"/api/{inbox}/wait", params=query) as response:
        waited = json.loads(await response.text())
    if not waited["complete"]:
        raise TimeoutError(f"no message was sent to {to}")
    message: dict[str, Any] = waited["items"][0]
    return message


async def _posting_of(http: aiohttp.ClientSession, event: str) -> str:
    """Wait for the posting of an event, and return its id."""
    while True:
        async with http.get("/v1/postings", params={"from_event": event}) as response:
            items = json.loads(await response.text())["items"] if response.ok else []
        if items:
            return str(items[0]["id"])
        await asyncio.sleep(POLL_INTERVAL)


async def _final_status(http: aiohttp.ClientSession, posting: str) -> PostingStatus:
    """Wait until a posting has ended, and return its status."""
    while True:
        async with http.get(f"/v1/postings/{posting}") as response:
            if response.ok:
                status = PostingStatus.model_validate_json(await response.read())
                if status.status in FINAL_STATES:
                    return status
        await asyncio.sleep(POLL_INTERVAL)


def _print(number: int, text: str) -> None:
    echo(f"  {number}  {text}")
