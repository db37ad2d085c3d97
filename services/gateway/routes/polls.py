"""The routes by which users of the messenger get their events: long polls and streams."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Final

from aiohttp import web

from services.gateway.messenger.bodies import bearer_tokens, read_fields, single_token_hash
from services.gateway.messenger.declaration import (
    BODY_FAILURES,
    EXAMPLE_TOKEN,
    INVALID_TOKEN,
    SIGNED_IN,
    TAG,
    failures,
    invalid_parameters,
)
from services.gateway.messenger.limits import too_many
from services.gateway.messenger.schemas import PollForm, PollResponse
from services.gateway.middleware import DETAIL, USER_ID
from services.gateway.parsing import QUERY, invalid
from services.gateway.polls.reading import Page, next_page
from services.gateway.polls.waiters import TooManyPollsError, Waiter
from services.gateway.responses import NO_STORE, json_text_response
from services.gateway.routes.declaration import Dependencies, Route, ok
from shared.amqp.rpc import RequestContext
from shared.contracts.polls import MAX_CURSOR
from shared.contracts.requests import FieldError
from shared.http.openapi import Body, Parameter, Response, TextBody
from shared.http.problem import ProblemError
from shared.http.server import on_disconnect

# Seconds. Proxies close connections on which nothing is sent for a minute, some after 20 s.
COMMENT_INTERVAL: Final = 15.0
# Seconds after which a stream reads although it was not woken. So it detects a revoked token or a
# lost wake within a minute. 1,000 streams cost 17 to 25 reads a second.
READ_INTERVAL: Final = 58.0
# Events of one read of a stream. They are in memory until the client has received them.
STREAM_PAGE: Final = 100
# Seconds for a client to receive a response, or a part of a stream. At most the buffers of the
# socket and one page are in memory meanwhile.
WRITE_TIMEOUT: Final = 30.0
# Seconds after which a client with too many polls may try again.
TOO_MANY_DELAY: Final = 5.0
_STREAM_HEADERS: Final = {
    **NO_STORE,
    # Without the charset, Python's requests reads ISO 8859-1.
    "Content-Type": "text/event-stream; charset=utf-8",
    "X-Accel-Buffering": "no",  # otherwise nginx delays the events
}
# JSON escapes the others, and these occur only within its strings.
_LINE_SEPARATORS: Final = {ord(each): f"\\u{ord(each):04x}" for each in "\x85\u2028\u2029"}

_CURSOR: Final = "MS40Mg"
_EVENT: Final = {
    "type": "new_message",
    "event": {
        "message_id": 7,
        "to_id": 1,
        "from_id": 2,
        "created_at": 1795335960,
        "text": "Hello",
    },
    "next_cursor": _CURSOR,
}
_STREAM: Final = (
    f"id: {_CURSOR}\n"
    'data: {"type":"new_message","event":{"message_id":7,"to_id":1,"from_id":2,'
    '"created_at":1795335960,"text":"Hello"}}\n\n'
)


def routes() -> tuple[Route, ...]:
    """Return the routes."""
    return (
        Route(
            method="POST",
            path="/events/polling",
            operation_id="poll_events",
            handler=poll_events,
            tag=TAG,
            summary="Wait for your events",
            description="Returns the next event: at once if there is one, otherwise as soon as one"
            ' happens. After `timeout` seconds the response is `{"events": []}`. With `limit`, it'
            ' is `{"events": […], "next_cursor"}`.',
            body=Body(
                PollForm,
                {
                    "The next event": {"token": EXAMPLE_TOKEN, "timeout": 25},
                    "Events after a cursor": {
                        "token": EXAMPLE_TOKEN,
                        "cursor": _CURSOR,
                        "limit": 100,
                    },
                },
            ),
            schemes=SIGNED_IN,
            responses={
                200: ok("An event, or a list of events.", PollResponse, _EVENT),
                **INVALID_TOKEN,
                **invalid_parameters("cursor: is not a valid cursor"),
                **BODY_FAILURES,
                **failures(),
            },
        ),
        Route(
            method="GET",
            path="/events/stream",
            operation_id="stream_events",
            handler=stream_events,
            tag=TAG,
            summary="Stream your events",
            description="Server-sent events. Each has a cursor as its `id`, and `data` is"
            ' `{"type", "event"}`. The token is in the header `Authorization` or in the query.',
            parameters=(
                Parameter(
                    "token",
                    "query",
                    "The token of a sign-in.",
                    {"type": "string", "maxLength": 1000, "pattern": "^.*$"},
                ),
                Parameter(
                    "Last-Event-ID",
                    "header",
                    "The cursor to continue after.",
                    {"type": "string", "maxLength": MAX_CURSOR, "pattern": "^[A-Za-z0-9_-]*$"},
                    example=_CURSOR,
                ),
            ),
            schemes=SIGNED_IN,
            head=False,  # it would move the position of the token
            responses={
                200: Response("A stream of events.", TextBody({"text/event-stream": _STREAM})),
                **INVALID_TOKEN,
                **invalid_parameters("cursor: is not a valid cursor"),
                **failures(),
            },
        ),
    )


async def poll_events(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.StreamResponse:
    """Return the next events of a user: at once, or as soon as there are some."""
    given = await read_fields(request)
    hashed = given.token_hash(request)
    form = given.parse(PollForm)
    read = partial(
        deps.user_events.read, hashed, cursor=form.cursor, limit=form.limit or 1, context=context
    )
    with _open_waiter(request, deps, hashed) as waiter:
        page = await next_page(read, waiter, timeout=form.timeout)
        request[USER_ID] = page.user_id
        with deps.user_events.holding(page):
            return await _sent(request, _response(page, as_list=form.limit is not None))


def _response(page: Page, *, as_list: bool) -> web.Response:
    if not page.events:
        return json_text_response('{"events":[]}')
    if not as_list:
        [event] = page.events
        return json_text_response(f'{event.json[:-1]},"next_cursor":"{page.next_cursor}"}}')
    events = ",".join(event.json for event in page.events)
    return json_text_response(f'{{"events":[{events}],"next_cursor":"{page.next_cursor}"}}')


async def _sent(request: web.Request, response: web.Response) -> web.Response:
    """Send a response, and return it. Until the client has read it, its poll counts as open."""
    try:
        async with asyncio.timeout(WRITE_TIMEOUT):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        _abort(request)
    return response


async def stream_events(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.StreamResponse:
    """Stream the events of a user until the client disconnects or the token is not valid."""
    token = request[QUERY].get("token")
    hashed = single_token_hash(bearer_tokens(request) | (set() if token is None else {token}))
    read = partial(deps.user_events.read, hashed, limit=STREAM_PAGE, context=context)
    cursor = request.headers.get("Last-Event-ID") or None
    if cursor is not None and not cursor.isascii():
        raise invalid([FieldError(field="cursor", message="is not a valid cursor")])
    with _open_waiter(request, deps, hashed) as waiter:
        mark = waiter.mark()
        page = await read(cursor=cursor)
        request[USER_ID] = page.user_id
        if not page.events:  # otherwise the first wait binds it, after the events are sent
            deps.waiters.bind(waiter, page.user_id)
        response = web.StreamResponse(headers=_STREAM_HEADERS)
        await response.prepare(request)
        try:
            await _stream(response, read, waiter, mark, page, deps.user_events.holding)
        except TimeoutError:
            _abort(request)
        except (ConnectionError, ProblemError, TooManyPollsError) as error:
            # The response has begun, so it only ends. The client reconnects with its last cursor.
            request[DETAIL] = str(error)
        return response


async def _stream(  # noqa: PLR0913, PLR0917 - the state of the stream, and its collaborators
    response: web.StreamResponse,
    read: Callable[..., Awaitable[Page]],
    waiter: Waiter,
    mark: int,
    page: Page,
    holding: Callable[[Page], AbstractContextManager[None]],
) -> None:
    """Send a page, and those that follow, until the waiter ends.

    A read also verifies the token, even if it returns no events.

    Raises:
        TimeoutError: the client has not received anything for `WRITE_TIMEOUT`.
        ConnectionError: it has disconnected.
        ProblemError: a read failed: the token is no longer valid, or a service is unavailable.
        TooManyPollsError: the user has too many open polls and streams.
    """
    named: str | None = None  # the last id that was sent
    while True:
        with holding(page):
            for event in page.events:
                await _write(response, f"id: {event.cursor}\ndata: {_one_line(event.json)}\n\n")
                named = event.cursor
        if not page.events:
            if named != page.next_cursor:
                # Not an event: it only names the cursor with which the client reconnects.
                await _write(response, f"id: {page.next_cursor}\n\n")
                named = page.next_cursor
            await _wait(response, waiter, page.user_id, mark)
            if waiter.ended:
                return
        mark = waiter.mark()
        page = await read(cursor=page.next_cursor)


async def _wait(response: web.StreamResponse, waiter: Waiter, user_id: int, mark: int) -> None:
    """Wait until the next read of a stream is due, and send comments meanwhile."""
    now = asyncio.get_running_loop().time
    read_at = now() + READ_INTERVAL * random.uniform(0.7, 1)  # noqa: S311 - not a secret
    while not waiter.ended and now() < read_at:
        until = min(now() + COMMENT_INTERVAL, read_at)
        if await waiter.wait(user_id, since=mark, until=until):
            return
        await _write(response, ":\n\n")


def _one_line(json: str) -> str:
    """Return JSON without characters at which libraries split lines, such as `str.splitlines`."""
    return json if json.isascii() else json.translate(_LINE_SEPARATORS)


async def _write(response: web.StreamResponse, text: str) -> None:
    async with asyncio.timeout(WRITE_TIMEOUT):
        await response.write(text.encode())


@contextmanager
def _open_waiter(request: web.Request, deps: Dependencies, token_hash: str) -> Iterator[Waiter]:
    """Yield a waiter that ends when the client disconnects.

    Raises:
        ProblemError: 429; the process, address, user or token has too many open polls and streams.
    """
    try:
        with deps.waiters.open(token_hash, deps.limits.address(request)) as waiter:
            on_disconnect(request, waiter.end)
            yield waiter
    except TooManyPollsError:
        raise too_many(TOO_MANY_DELAY) from None


def _abort(request: web.Request) -> None:
    """Close the connection, and discard the data that the client does not read."""
    if request.transport is not None:
        request.transport.abort()
