"""Asks the service that owns the answer, and says over HTTP what became of it."""

from http import HTTPStatus
from typing import Any, Final

from shared.amqp.request_reply import NoResponseError, RequestContext, RpcClient, UnavailableError
from shared.contracts.requests import Failure, FailureCode
from shared.http.problem import ProblemError

# Seconds after which to try again; a lost broker or store is back within so many, or much later.
RETRY_AFTER: Final = {"Retry-After": "2"}

_STATUS: Final = {
    FailureCode.INVALID: HTTPStatus.UNPROCESSABLE_ENTITY,
    FailureCode.CONFLICT: HTTPStatus.CONFLICT,
    FailureCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    FailureCode.FORBIDDEN: HTTPStatus.FORBIDDEN,
    FailureCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    FailureCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}


class ServiceClient:
    """One service behind its request queue; `name` is what errors call it."""

    def __init__(self, requester: RpcClient, name: str, queue: str, *, timeout: float) -> None:
        self._requester = requester
        self._name = name
        self._queue = queue
        self._timeout = timeout

    async def ask(self, operation: str, body: bytes, context: RequestContext) -> Any:
        """The value it answers with.

        Raises:
            ProblemError: it did not fulfil the request (the status says why), 503 where nothing was
                done, 504 where that is unknown.
        """
        try:
            answer = await self._requester.ask(
                self._queue, operation, body, context=context, timeout=self._timeout
            )
        except UnavailableError as error:
            raise unavailable(f"{self._name}: {error}") from None
        except NoResponseError as error:
            raise unknown(
                f"{self._name}: {error}; whether it was done is unknown: ask, or repeat it with"
                " the same Idempotency-Key"
            ) from None
        if isinstance(answer, Failure):
            raise _refused(answer)
        return answer


def _refused(failure: Failure) -> ProblemError:
    if failure.code is FailureCode.UNAVAILABLE:
        return unavailable(failure.detail)
    return ProblemError(
        _STATUS[failure.code], failure.code.value, failure.detail, errors=failure.errors
    )


def unavailable(why: str) -> ProblemError:
    """503: nothing was done."""
    return ProblemError(
        HTTPStatus.SERVICE_UNAVAILABLE, FailureCode.UNAVAILABLE.value, why, headers=RETRY_AFTER
    )


def unknown(why: str) -> ProblemError:
    """504: it may have been done."""
    return ProblemError(HTTPStatus.GATEWAY_TIMEOUT, "no_answer", why)
