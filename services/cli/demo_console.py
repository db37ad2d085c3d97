"""The fifth part of the demonstration: the journal, and the console that shows it."""

import asyncio
import json
from typing import Any, Final
from uuid import UUID

import aiohttp
import click

from services.cli.output import echo

# Seconds until the journal has recorded an attempt, on a slow machine.
RECORDING_TIMEOUT: Final = 30
# Attempts of callback 2, and with the replay.
ATTEMPTS: Final = 3


async def show_console(
    gateway: str, console: str, callback_id: str, mailing_id: UUID | None
) -> None:
    """Print the story of a callback that failed twice, replay it, and say where to look.

    console: the URL of the console in printed links.
    callback_id: the callback; all of its attempts are made.
    mailing_id: a draft, None if mailings are not part of the demonstration.

    Raises:
        click.ClickException: the gateway rejected a request.
        TimeoutError: the journal did not record an attempt in time.
    """
    echo(
        "\nDemonstration, part 5: the journal and the console\n"
        "  17 the story of callback 2\n"
        "  18 a replay sends callback 2 again\n"
    )
    async with aiohttp.ClientSession(gateway) as http:
        path = f"/v1/callbacks/{callback_id}"
        attempts = await _attempts(http, path, ATTEMPTS)
        outcomes = ", ".join(f"{each['outcome']} ({each['status_code']})" for each in attempts)
        echo(f"  17 the journal has {len(attempts)} attempts: {outcomes}")
        await _request(http, "POST", f"{path}/replay", {})
        again = (await _attempts(http, path, ATTEMPTS + 1))[-1]
        echo(f"  18 sent again under the same webhook-id: {again['outcome']}")
    echo(
        f"     The timeline of callback 2: {console}/callbacks/one?id={callback_id}\n"
        f"     Callback 3 is a dead letter, to redrive or discard: {console}/dead-letters/callbacks"
    )
    if mailing_id is not None:
        echo(f"     A mailing to start, watch and pause: {console}/mailings/{mailing_id}")
    echo("     Sign in with one click. Omar may replay, redrive and send, Ada may also discard.")


async def _attempts(http: aiohttp.ClientSession, path: str, count: int) -> list[dict[str, Any]]:
    """Wait until the journal has this many attempts, and return them, oldest first."""
    found: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(RECORDING_TIMEOUT):
            while len(found) < count:
                await asyncio.sleep(0.1)
                found = (await _request(http, "GET", f"{path}/attempts"))["items"]
    except TimeoutError:
        raise TimeoutError(
            f"the journal has recorded {len(found)} of {count} attempts of callback 2"
        ) from None
    return sorted(found, key=lambda each: str(each["at"]))


async def _request(http: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> Any:
    async with http.request(method, path, json=body) as response:
        content = json.loads(await response.text())
    if response.status == 404 and method == "GET":  # noqa: PLR2004 - nothing is recorded yet
        return {"items": []}
    if not response.ok:
        raise click.ClickException(
            f"The gateway rejected {method} {path}: {content.get('detail', content)}"
        )
    return content
