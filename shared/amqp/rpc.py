"""The parts that RPC clients and servers share: the context of a request, and its encoding.

A request is a message of type OPERATION to a request queue. Its property `expiration` is its
timeout in milliseconds. Its `message_id` is its idempotency key: the broker delivers a request
again if the service dies before it responds. The response arrives by direct reply-to, on the
channel of the request.
`shared/contracts/requests.py` describes the bodies.
"""

from typing import Final, NamedTuple

from shared.amqp.codec import Properties
from shared.contracts import headers
from shared.contracts.requests import Failure, FailureCode
from shared.errors import InfrastructureError

REPLY_TO: Final = "amq.rabbitmq.reply-to"
JSON: Final = "application/json"
# Seconds for a request without a timeout. Requests of our own always carry one.
DEFAULT_TIMEOUT: Final = 30.0


class RequestContext(NamedTuple):
    """The verified client id behind a request (None: anonymous), and its W3C trace context.

    `message_id` identifies the request on the service's side, also when it is delivered again.
    `operator`: whether the caller may see all clients in the journal. `actor`: who is responsible,
    for the audit log. A service sees the client id if the caller names no other actor.
    """

    client_id: str | None = None
    traceparent: str | None = None
    message_id: str | None = None
    operator: bool = False
    actor: str | None = None


ANONYMOUS: Final = RequestContext()


def failure_of(error: InfrastructureError) -> Failure:
    """Return the failure that reports an unavailable store or broker to the caller."""
    code = FailureCode.UNKNOWN if error.effect_unknown else FailureCode.UNAVAILABLE
    return Failure(code=code, detail=str(error))


def context_headers(context: RequestContext) -> dict[str, str] | None:
    """Return the headers that carry the context."""
    values = {
        headers.CLIENT_ID: context.client_id,
        headers.TRACEPARENT: context.traceparent,
        headers.OPERATOR: "1" if context.operator else None,
        headers.ACTOR: context.actor,
    }
    return {name: value for name, value in values.items() if value is not None} or None


def request_timeout(request: Properties) -> float:
    """Return the timeout of a request in seconds. RabbitMQ accepts only numbers for it."""
    return DEFAULT_TIMEOUT if request.expiration is None else int(request.expiration) / 1000
