"""The third part of the demonstration: mailings to clients of the directory."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import aiohttp
import click

from services.cli.output import echo
from shared.contracts.mailing_requests import Mailing
from shared.contracts.mailings import MailingStatus

# Seconds for all mailings on a slow machine.
MAILINGS_TIMEOUT: Final = 90
# Seconds between two requests for the statistics of a mailing.
POLL_INTERVAL: Final = 0.5
# Seconds until the mailing that starts by itself is due.
START_DELAY: Final = 4
# Seconds after a cancellation in which no message may be sent.
OBSERVATION: Final = 2
# Seconds until the mailing ends whose clients are asleep: at least an hour before their morning.
MORNING_TIMEOUT: Final = 600
# Clients by tag.
AUDIENCES: Final = {"demo-now": 400, "demo-later": 50, "demo-morning": 50, "demo-halfway": 400}
# The draft is for people, who start and pause it in the console: it takes three minutes.
DRAFT_RATE: Final = 120
# The mailing that is watched takes four seconds, the one that is cancelled eight.
RATES: Final = {"demo-now": 6000, "demo-halfway": 3000}
DAYTIME: Final = {"from": "09:00", "to": "21:00"}
# One of them is always between 10 and 18 o'clock, and another one between 0 and 8 o'clock.
_ZONES: Final = (
    *("Pacific/Honolulu", "America/Phoenix", "America/Sao_Paulo", "Africa/Abidjan"),
    *("Europe/Moscow", "Asia/Omsk", "Asia/Tokyo", "Asia/Kamchatka"),
)


async def show_mailings(gateway: str, page: str) -> UUID:
    """Create clients and four mailings, and print what becomes of them.

    Returns the id of a draft of one more mailing.

    page: the URL of the sandbox in printed links.

    Raises:
        click.ClickException: the gateway rejected a request.
        TimeoutError: a step took too long.
    """
    day, night = zones(datetime.now(UTC))
    echo(
        "\nDemonstration, part 3: mailings to clients in their own daytime\n"
        f"  9  a mailing to {AUDIENCES['demo-now']} clients, {RATES['demo-now']} a minute\n"
        f"  10 a mailing that starts by itself in {START_DELAY} seconds\n"
        f"  11 a mailing to clients in {night}, whose morning has not come yet\n"
        f"  12 a mailing to {AUDIENCES['demo-halfway']} clients that is cancelled halfway\n"
    )
    async with (
        asyncio.timeout(MAILINGS_TIMEOUT),
        aiohttp.ClientSession(gateway) as http,
    ):
        await _import_clients(http, day, night)
        await asyncio.gather(
            _watch(http, page),
            _start_later(http),
            _wait_for_morning(http, night),
            _cancel_halfway(http),
        )
        text = "Hello! You are one of {{ user.tag }}, and somebody has pressed Start."
        draft = await _create(http, "demo-now", text=text, draft=True, rate_per_minute=DRAFT_RATE)
        return draft.id


def zones(now: datetime) -> tuple[str, str]:
    """Return a time zone in which it is day, and one in which it is night."""
    hours = {zone: now.astimezone(ZoneInfo(zone)).hour for zone in _ZONES}
    day = next(zone for zone, hour in hours.items() if 10 <= hour < 18)  # noqa: PLR2004
    night = next(zone for zone, hour in hours.items() if hour < 8)  # noqa: PLR2004
    return day, night


async def _import_clients(http: aiohttp.ClientSession, day: str, night: str) -> None:
    lines = "\n".join(["phone,tag,timezone", *_clients(day, night)])
    headers = {"Content-Type": "text/csv"}
    async with http.post("/v1/clients/import", data=lines.encode(), headers=headers) as response:
        result = await _success(response)
    if result["failed"]:
        raise click.ClickException(f"Cannot import clients: {result['errors'][0]['reason']}")


def _clients(day: str, night: str) -> Iterator[str]:
    """Yield lines of CSV. No phone number begins with 7000."""
    number = 0
    for tag, count in AUDIENCES.items():
        zone = night if tag == "demo-morning" else day
        for _ in range(count):
            yield f"7000{number:07d},{tag},{zone}"
            number += 1


async def _create(http: aiohttp.ClientSession, tag: str, **fields: Any) -> Mailing:
    body = {
        "text": "Good morning! You are one of {{ user.tag }}.",
        "end_at": _soon(24 * 3600),
        "filter": {"tags": [tag]},
        "local_hours": DAYTIME,
        **fields,
    }
    async with http.post("/v1/mailings", json=body) as response:
        return _mailing(await _success(response))


async def _watch(http: aiohttp.ClientSession, page: str) -> None:
    """Print the statistics of a mailing while they grow."""
    mailing = await _create(http, "demo-now", rate_per_minute=RATES["demo-now"])
    shown = -1
    while True:
        mailing = await _get(http, mailing)
        sent = await _sent(http, mailing)
        if mailing.status is MailingStatus.FINISHED:
            break
        if sent >= shown + AUDIENCES["demo-now"] // 4:
            _print(9, f"{sent} sent")
            shown = sent
        await asyncio.sleep(POLL_INTERVAL)
    _print(
        9,
        f"mailing {mailing.id}: {sent} of {AUDIENCES['demo-now']} sent, {mailing.status}:"
        f" {page}/sms",
    )


async def _start_later(http: aiohttp.ClientSession) -> None:
    mailing = await _create(http, "demo-later", start_at=_soon(START_DELAY))
    _print(10, f"{mailing.status} for {mailing.start_at:%H:%M:%S} UTC")
    while mailing.status is not MailingStatus.FINISHED:
        await asyncio.sleep(POLL_INTERVAL)
        mailing = await _get(http, mailing)
    late = (mailing.started_at or mailing.start_at) - mailing.start_at
    _print(
        10,
        f"started {late.total_seconds() * 1000:.0f} ms after that, {await _sent(http, mailing)}"
        f" sent, {mailing.status}",
    )


async def _wait_for_morning(http: aiohttp.ClientSession, night: str) -> None:
    # It ends before the morning, because its messages could reach a real server by then.
    mailing = await _create(http, "demo-morning", end_at=_soon(MORNING_TIMEOUT))
    now = datetime.now(ZoneInfo(night))
    _print(
        11,
        f"{mailing.status}: it is {now:%H:%M} in {night}, so its messages wait for"
        f" {DAYTIME['from']}, and {await _sent(http, mailing)} are sent",
    )


async def _cancel_halfway(http: aiohttp.ClientSession) -> None:
    tag = "demo-halfway"
    mailing = await _create(http, tag, rate_per_minute=RATES[tag])
    sent = 0
    while sent < AUDIENCES[tag] // 2:
        await asyncio.sleep(POLL_INTERVAL)
        sent = await _sent(http, mailing)
    async with http.post(f"/v1/mailings/{mailing.id}/cancel") as response:
        mailing = _mailing(await _success(response))
    _print(12, f"{mailing.status} after {await _sent(http, mailing)} of {AUDIENCES[tag]} messages")
    await asyncio.sleep(OBSERVATION)
    before = await _sent(http, mailing)
    await asyncio.sleep(OBSERVATION)
    after = await _sent(http, mailing)
    _print(12, f"{OBSERVATION} s later {before} sent, {2 * OBSERVATION} s later {after} sent")


async def _sent(http: aiohttp.ClientSession, mailing: Mailing) -> int:
    async with http.get(f"/v1/mailings/{mailing.id}/stats") as response:
        count: int = (await _success(response))["by_status"].get("sent", 0)
    return count


async def _get(http: aiohttp.ClientSession, mailing: Mailing) -> Mailing:
    async with http.get(f"/v1/mailings/{mailing.id}") as response:
        return _mailing(await _success(response))


async def _success(response: aiohttp.ClientResponse) -> Any:
    content = json.loads(await response.text())
    if not response.ok:
        raise click.ClickException(f"The gateway rejected a request: {content['detail']}")
    return content


def _mailing(content: Mapping[str, Any]) -> Mailing:
    return Mailing.model_validate(content)


def _soon(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def _print(number: int, text: str) -> None:
    echo(f"  {number:<2} {text}")
