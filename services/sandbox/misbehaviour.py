"""Carries out a behaviour that an order names, on the connection that a request came by."""

import asyncio
import socket
import struct
import zlib

from aiohttp import web

from services.sandbox.orders import (
    Answer,
    Close,
    Drip,
    EndlessHeaders,
    Fail,
    Hang,
    HugeBody,
    Redirect,
    Reset,
)

Misbehaviour = Fail | Hang | Drip | Redirect | HugeBody | Reset | EndlessHeaders | Close | Answer
"""Every behaviour that makes an answer of its own; a ``Delay`` only puts off the usual one."""

_PIECE = bytes(64 * 1024)
_GZIP = 31  # zlib's window bits for the gzip format
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: closing sends RST, not FIN


async def misbehave(  # noqa: C901, PLR0911 - a case for each behaviour
    behaviour: Misbehaviour, request: web.Request
) -> web.StreamResponse:
    """Answer as the behaviour says.

    May never return: it is cancelled when the client goes or the server stops.
    """
    match behaviour:
        case Fail(status=status, retry_after=retry_after):
            headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
            return web.Response(status=status, headers=headers)
        case Redirect(status=status, location=location):
            return web.Response(status=status, headers={"Location": location})
        case Answer(status=status, body=body, content_type=content_type):
            return web.Response(
                status=status, body=body.encode(), headers={"Content-Type": content_type}
            )
        case Hang():
            await asyncio.get_running_loop().create_future()
        case EndlessHeaders(interval=interval):
            await _send_headers_for_ever(request, interval)
        case Drip(interval=interval, bytes=size):
            return await _drip(request, interval, size)
        case HugeBody(bytes=size, gzip=gzip):
            return await _send_huge_body(request, size, gzip=gzip)
        case Reset():
            return await _reset(request)
        case Close():
            if request.transport is not None:
                request.transport.close()
            return web.Response()  # never sent: there is nobody any more
    raise AssertionError("unreachable: a hang and endless headers end only by cancellation")


async def _drip(request: web.Request, interval: float, size: int) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for sent in range(size):
        if sent:
            await asyncio.sleep(interval)
        await response.write(b".")
    return response


async def _send_huge_body(request: web.Request, size: int, *, gzip: bool) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Encoding": "gzip"} if gzip else None)
    await response.prepare(request)
    packer = zlib.compressobj(wbits=_GZIP) if gzip else None
    while size > 0:
        piece = _PIECE[:size]
        size -= len(piece)
        if packed := packer.compress(piece) if packer else piece:
            await response.write(packed)
        # A write to a client that keeps up returns without yielding; others want the loop, too.
        await asyncio.sleep(0)
    if packer:
        await response.write(packer.flush())
    return response


async def _reset(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"received": ')
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        request.transport.abort()
    return response


async def _send_headers_for_ever(request: web.Request, interval: float) -> None:
    # Below StreamResponse, which sends its headers whole or not at all.
    await request.writer.write(b"HTTP/1.1 200 OK\r\n")
    number = 0
    while True:
        number += 1
        await request.writer.write(b"X-Endless-%d: %s\r\n" % (number, b"o" * 1000))
        await asyncio.sleep(interval)
