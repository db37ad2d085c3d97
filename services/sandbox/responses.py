"""Responds to a request of the sandbox with the behaviour that is configured for it."""

import asyncio
from contextlib import suppress

from aiohttp import web

from services.sandbox import misbehaviour
from services.sandbox.behaviours import (
    Close,
    Drip,
    EndlessHeaders,
    Fail,
    Hang,
    HugeBody,
    Malformed,
    Redirect,
    Reset,
    Respond,
)
from services.sandbox.misbehaviour import MALFORMED, Misbehaviour

_RESETS = {
    "start": misbehaviour.reset,
    "headers": misbehaviour.reset_in_headers,
    "body": misbehaviour.reset_in_body,
}

# Every behaviour that replaces the usual response. A `Delay` only delays it.
Replacement = (
    Fail | Hang | Drip | Redirect | HugeBody | Reset | EndlessHeaders | Close | Malformed | Respond
)


class _RawConnection:
    """The connection of a request, without aiohttp's response objects."""

    def __init__(self, request: web.Request) -> None:
        self._request = request

    async def request(self) -> object:
        return await self._request.read()

    async def write(self, data: bytes) -> None:
        await self._request.writer.write(data)

    async def wait_closed(self) -> None:
        # aiohttp cancels the handler when the client closes the connection.
        await asyncio.get_running_loop().create_future()

    def reset(self) -> None:
        if self._request.transport is not None:
            misbehaviour.reset_transport(self._request.transport)


async def respond(behaviour: Replacement, request: web.Request) -> web.Response:
    """Respond with this behaviour.

    May never return: it is cancelled when the client closes or the server stops.
    """
    match behaviour:
        case Fail(status=status, retry_after=retry_after):
            headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
            return web.Response(status=status, headers=headers)
        case Redirect(status=status, location=location):
            return web.Response(status=status, headers={"Location": location})
        case Respond(status=status, body=body, content_type=content_type):
            return web.Response(
                status=status, body=body.encode(), headers={"Content-Type": content_type}
            )
    with suppress(ConnectionError):
        await _raw(behaviour)(_RawConnection(request))
    if request.transport is not None:
        request.transport.close()
    return web.Response()  # not sent: the connection is closed


def _raw(  # noqa: PLR0911 - a case for each behaviour
    behaviour: Hang | Drip | HugeBody | Reset | EndlessHeaders | Close | Malformed,
) -> Misbehaviour:
    match behaviour:
        case Hang():
            return misbehaviour.hang
        case Drip(at="headers", interval=interval):
            return misbehaviour.drip_headers(interval)
        case Drip(interval=interval, bytes=size):
            return misbehaviour.drip_body(interval, size=size)
        case HugeBody(bytes=size, gzip=gzip):
            return misbehaviour.huge_body(size, gzip=gzip)
        case Reset(at=at):
            return _RESETS[at]
        case EndlessHeaders(interval=interval):
            return misbehaviour.endless_headers(interval)
        case Close():
            return misbehaviour.close
        case Malformed(response=name):
            return MALFORMED[name]
