"""Handlers of operations that the journal does not have yet."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from shared.amqp.rpc import RequestContext
from shared.contracts.requests import Failure, FailureCode, RpcOperation

Handler = Callable[[RequestContext, bytes], Awaitable[BaseModel | Failure]]


def missing(operations: Iterable[RpcOperation[Any]]) -> Mapping[str, Handler]:
    """Return handlers that report each of these operations as missing."""
    return {operation.name: _missing(operation.name) for operation in operations}


def _missing(name: str) -> Handler:
    async def handle(_context: RequestContext, _body: bytes) -> Failure:
        return Failure(code=FailureCode.UNAVAILABLE, detail=f"the journal does not have {name} yet")

    return handle
