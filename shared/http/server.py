"""HTTP servers that reject malformed requests without repeating their content.

They can report that a client has disconnected.
"""

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from shared.http.problem import ProblemError

logger = logging.getLogger(__name__)


class _Connection(web.RequestHandler):
    """One connection. aiohttp logs and echoes the malformed part, which may hold a secret."""

    __slots__ = ("on_disconnect",)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.on_disconnect: Callable[[], None] | None = None

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self.on_disconnect is not None:
            self.on_disconnect()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        logger.debug("malformed request rejected", extra={"reason": type(exc).__name__})
        problem = ProblemError(HTTPStatus(status), "malformed", "The request is not valid HTTP.")
        response = problem.response()
        response.force_close()
        return response


def on_disconnect(request: web.Request, disconnected: Callable[[], None]) -> None:
    """Call a function when the client disconnects, at once if it has already.

    Handlers continue without their client. Only those that wait for long need to know.
    """
    connection = request.protocol
    if isinstance(connection, _Connection):
        connection.on_disconnect = disconnected
    if request.transport is None:
        disconnected()


class _Server(web.Server):
    """Creates a `_Connection` for each connection."""

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class AppRunner(web.AppRunner):
    """Runs an application. Its constructor takes the arguments of `aiohttp.web.AppRunner`."""

    __slots__ = ()

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(
            server.request_handler,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            loop=server._loop,  # noqa: SLF001 - aiohttp has no other way to replace the protocol
            **server._kwargs,  # noqa: SLF001
        )
