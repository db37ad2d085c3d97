"""The handlers of requests about endpoints and their messages."""

from collections.abc import Mapping

from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response
from shared.contracts.endpoint_requests import ENDPOINT_OPERATIONS
from shared.contracts.requests import Failure, FailureCode


class EndpointRequests:
    """Handles requests of clients about their endpoints."""

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return {operation.name: _unavailable for operation in ENDPOINT_OPERATIONS}


async def _unavailable(_: RequestContext, __: bytes) -> Response:
    return Failure(code=FailureCode.UNAVAILABLE, detail="not available yet")
