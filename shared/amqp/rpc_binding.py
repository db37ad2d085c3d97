"""Binds RPC operations to the functions that respond to them."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic import BaseModel

from shared.amqp.parsing import parse_request
from shared.amqp.rpc import RequestContext
from shared.contracts.requests import Failure, RpcOperation

B = TypeVar("B", bound=BaseModel)
Response = BaseModel | Failure
Handler = Callable[[RequestContext, bytes], Awaitable[Response]]


def bound(
    operation: RpcOperation[B],
    respond: Callable[[RequestContext, B], Awaitable[Response]],
    *,
    within: str = "",
) -> tuple[str, Handler]:
    """Return the name of an operation and its handler, which parses the request.

    `within` is a field to remove from the paths of errors.
    """

    async def handle(context: RequestContext, body: bytes) -> Response:
        command = parse_request(operation.request, body, within=within)
        return command if isinstance(command, Failure) else await respond(context, command)

    return operation.name, handle
