"""HTTP servers that reject malformed requests without repeating their content."""

import logging
from http import HTTPStatus

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from shared.http.problem import ProblemError

logger = logging.getLogger(__name__)


class _Connection(web.RequestHandler):
    """One connection. aiohttp logs and echoes the malformed part, which may hold a secret."""

    __slots__ = ()

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
