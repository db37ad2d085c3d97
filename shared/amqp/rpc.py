"""The parts that RPC clients and servers share: the context of a request, and its encoding.

A request is a message of type OPERATION to a request queue, with the property `expiration`: its
timeout in milliseconds. The response arrives by direct reply-to, on the channel of the request.
`shared/contracts/requests.py` describes the bodies.
"""

from typing import Final, NamedTuple

from shared.amqp.codec import Properties
from shared.contracts import headers

REPLY_TO: Final = "amq.rabbitmq.reply-to"
JSON: Final = "application/json"
# Seconds for a request without a timeout. Requests of our own always carry one.
DEFAULT_TIMEOUT: Final = 30.0


class RequestContext(NamedTuple):
    """The verified client id behind a request (None: anonymous), and its W3C trace context."""

    client_id: str | None = None
    traceparent: str | None = None


ANONYMOUS: Final = RequestContext()


def context_headers(context: RequestContext) -> dict[str, str] | None:
    """Return the headers that carry the context."""
    values = {headers.CLIENT_ID: context.client_id, headers.TRACEPARENT: context.traceparent}
    return {name: value for name, value in values.items() if value is not None} or None


def request_timeout(request: Properties) -> float:
    """Return the timeout of a request in seconds. RabbitMQ accepts only numbers for it."""
    return DEFAULT_TIMEOUT if request.expiration is None else int(request.expiration) / 1000
