"""The handlers of requests about the callbacks that users register."""

from collections.abc import Mapping

from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response
from shared.contracts.registrations import REGISTRATION_OPERATIONS
from shared.contracts.requests import Failure, FailureCode


class RegistrationRequests:
    """Handles requests of users about their callbacks."""

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return {operation.name: _unavailable for operation in REGISTRATION_OPERATIONS}


async def _unavailable(_: RequestContext, __: bytes) -> Response:
    return Failure(code=FailureCode.UNAVAILABLE, detail="not available yet")
