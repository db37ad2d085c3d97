"""Who calls: the client id in a service ticket, or nobody in particular."""

from http import HTTPStatus
from typing import Final

from aiohttp import web
from multidict import istr

from services.gateway.edge import CLIENT_ID
from shared.amqp.request_reply import Asker
from shared.contracts.headers import traceparent
from shared.http.problem import Refused
from shared.tickets import BadTicket, Tickets

TICKET: Final = istr("X-Service-Ticket")
AUTHORIZATION: Final = istr("Authorization")
_CHALLENGE: Final = 'Bearer realm="ringback"'


class Callers:
    """Tells callers by their tickets."""

    def __init__(self, tickets: Tickets, *, anonymous: bool) -> None:
        self._tickets = tickets
        self._anonymous = anonymous

    def asker(self, request: web.Request) -> Asker:
        """Who asks, by the ticket, and for which trace; without a ticket, nobody.

        Raises:
            Refused: 401; the ticket is not valid, or there is none and anonymous callers are not
                served.
        """
        headers = request.headers
        trace = traceparent(headers)
        tickets = headers.getall(TICKET, ()) if TICKET in headers else ()
        if AUTHORIZATION in headers:
            tickets = (*tickets, *map(_bearer, headers.getall(AUTHORIZATION)))
        if not tickets:
            if self._anonymous:
                return Asker(None, trace)
            # RFC 6750: who has shown nothing is told no error.
            raise _unauthorised("a service ticket is needed: X-Service-Ticket", _CHALLENGE)
        if len(tickets) > 1:
            raise _bad("more than one ticket was sent")
        try:
            client_id = request[CLIENT_ID] = self._tickets.verify(tickets[0])
        except BadTicket as error:
            raise _bad(str(error)) from None
        return Asker(client_id, trace)


def _bearer(value: str) -> str:
    scheme, _, ticket = value.partition(" ")
    if scheme.lower() != "bearer":
        raise _bad("Authorization must be: Bearer TICKET")
    return ticket.strip()


def _bad(why: str) -> Refused:
    description = why.replace("\\", "").replace('"', "'")
    return _unauthorised(
        why, f'{_CHALLENGE}, error="invalid_token", error_description="{description}"'
    )


def _unauthorised(why: str, challenge: str) -> Refused:
    return Refused(
        HTTPStatus.UNAUTHORIZED, "unauthorized", why, headers={"WWW-Authenticate": challenge}
    )
