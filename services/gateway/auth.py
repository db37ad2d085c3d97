"""Authentication of HTTP requests by service tickets."""

from collections.abc import Collection
from http import HTTPStatus
from typing import Final

from aiohttp import web
from multidict import istr

from services.gateway.middleware import CLIENT_ID
from shared.amqp.rpc import RequestContext
from shared.http.problem import ProblemError
from shared.http.tracing import traceparent_of
from shared.security.tickets import InvalidTicketError, TicketVerifier

AUTHORIZATION: Final = istr("Authorization")
_CHALLENGE: Final = 'Bearer realm="ringback"'


class Authenticator:
    """Authenticates requests.

    header: the name of the header with a ticket.
    anonymous: whether requests without a ticket are accepted.
    operators: client ids whose requests are marked as those of an operator.
    """

    def __init__(
        self,
        verifier: TicketVerifier,
        *,
        header: str,
        anonymous: bool,
        operators: Collection[str] = (),
    ) -> None:
        self._verifier = verifier
        self._header = istr(header)
        self._anonymous = anonymous
        self._operators = frozenset(operators)

    def authenticate(self, request: web.Request) -> RequestContext:
        """Return the client id of the ticket and the trace; without a ticket, no client id.

        Raises:
            ProblemError: 401; the ticket is invalid, or required and missing.
        """
        headers = request.headers
        trace = traceparent_of(request)
        tickets = headers.getall(self._header, ()) if self._header in headers else ()
        if AUTHORIZATION in headers:
            tickets = (*tickets, *map(_bearer, headers.getall(AUTHORIZATION)))
        if not tickets:
            if self._anonymous:
                return RequestContext(None, trace)
            # RFC 6750: the challenge to a request without credentials has no error code.
            raise _unauthorized(
                f"A service ticket is required. Send it in the header {self._header}.", _CHALLENGE
            )
        if len(tickets) > 1:
            raise _invalid("The request has more than one service ticket.")
        try:
            client_id = request[CLIENT_ID] = self._verifier.verify(tickets[0])
        except InvalidTicketError as error:
            raise _invalid(str(error)) from None
        operator = client_id in self._operators
        return RequestContext(client_id, trace, operator=operator)


def _bearer(value: str) -> str:
    scheme, _, ticket = value.partition(" ")
    if scheme.lower() != "bearer":
        raise _invalid("The header Authorization must be: Bearer TICKET")
    return ticket.strip()


def _invalid(detail: str) -> ProblemError:
    description = detail.replace("\\", "").replace('"', "'")
    return _unauthorized(
        detail, f'{_CHALLENGE}, error="invalid_token", error_description="{description}"'
    )


def _unauthorized(detail: str, challenge: str) -> ProblemError:
    return ProblemError(
        HTTPStatus.UNAUTHORIZED, "unauthorized", detail, headers={"WWW-Authenticate": challenge}
    )
