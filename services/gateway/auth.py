"""Who calls: the client id in a service ticket, or nobody in particular."""

from http import HTTPStatus
from typing import Final

from aiohttp import web
from multidict import istr

from services.gateway.middleware import CLIENT_ID
from shared.amqp.request_reply import RequestContext
from shared.contracts.headers import traceparent
from shared.http.problem import ProblemError
from shared.security.tickets import InvalidTicketError, Tickets

TICKET: Final = istr("X-Service-Ticket")
AUTHORIZATION: Final = istr("Authorization")
_CHALLENGE: Final = 'Bearer realm="ringback"'


class Authenticator:
    """Tells callers by their tickets."""

    def __init__(self, tickets: Tickets, *, anonymous: bool) -> None:
        self._tickets = tickets
        self._anonymous = anonymous

    def context(self, request: web.Request) -> RequestContext:
        """Who asks, by the ticket, and for which trace; without a ticket, nobody.

        Raises:
            ProblemError: 401; the ticket is invalid, or missing where one is required.
        """
        headers = request.headers
        trace = traceparent(headers)
        tickets = headers.getall(TICKET, ()) if TICKET in headers else ()
        if AUTHORIZATION in headers:
            tickets = (*tickets, *map(_bearer, headers.getall(AUTHORIZATION)))
        if not tickets:
            if self._anonymous:
                return RequestContext(None, trace)
            # RFC 6750: who has shown nothing is told no error.
            raise _unauthorised("a service ticket is needed: X-Service-Ticket", _CHALLENGE)
        if len(tickets) > 1:
            raise _bad("more than one ticket was sent")
        try:
            client_id = request[CLIENT_ID] = self._tickets.verify(tickets[0])
        except InvalidTicketError as error:
            raise _bad(str(error)) from None
        return RequestContext(client_id, trace)


def _bearer(value: str) -> str:
    scheme, _, ticket = value.partition(" ")
    if scheme.lower() != "bearer":
        raise _bad("Authorization must be: Bearer TICKET")
    return ticket.strip()


def _bad(why: str) -> ProblemError:
    description = why.replace("\\", "").replace('"', "'")
    return _unauthorised(
        why, f'{_CHALLENGE}, error="invalid_token", error_description="{description}"'
    )


def _unauthorised(why: str, challenge: str) -> ProblemError:
    return ProblemError(
        HTTPStatus.UNAUTHORIZED, "unauthorized", why, headers={"WWW-Authenticate": challenge}
    )
