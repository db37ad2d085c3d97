"""Server-sent events: how the live parts of pages get what the console reads."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Final

from aiohttp import web

from services.console.feeds import END, Values
from services.console.visit import Visit

# Seconds. Proxies close connections on which nothing is sent for a minute, some after 20 s.
COMMENT_INTERVAL: Final = 15.0
# Seconds after which a browser connects again, so that its session is checked again.
LIFETIME: Final = 120.0
# Seconds for a browser to receive one value.
WRITE_TIMEOUT: Final = 30.0
# Milliseconds until a browser connects again.
_RETRY: Final = "retry: 500\n\n"
_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "X-Accel-Buffering": "no",  # otherwise nginx delays the events
}


async def stream(visit: Visit, values: Values, render: Callable[[Any], str]) -> web.StreamResponse:
    """Send what `render` makes of each value as an event, unless it is empty or the same again.

    Raises:
        ProblemError: 429, the session has too many streams.
    """
    with visit.site.feeds.stream_of(visit.csrf):
        response = web.StreamResponse(headers=_HEADERS)
        await response.prepare(visit.request)
        await _send(response, values, render)
    return response


async def _send(response: web.StreamResponse, values: Values, render: Callable[[Any], str]) -> None:
    last = ""
    try:
        await _write(response, _RETRY)
        async with asyncio.timeout(LIFETIME):
            while True:
                try:
                    async with asyncio.timeout(COMMENT_INTERVAL):
                        value = await values.get()
                except TimeoutError:
                    await _write(response, ":\n\n")
                    continue
                if value is END:
                    break
                text = render(value)
                if text not in {"", last}:
                    await _write(response, event(text))
                    last = text
    except (TimeoutError, ConnectionError):
        pass  # the browser connects again, or has gone


def event(text: str) -> str:
    """Return a server-sent event with this text."""
    return "".join(_lines(text)) + "\n"


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield f"data: {line}\n"


async def _write(response: web.StreamResponse, text: str) -> None:
    async with asyncio.timeout(WRITE_TIMEOUT):
        await response.write(text.encode(errors="backslashreplace"))
