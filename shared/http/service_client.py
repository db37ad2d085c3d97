"""Requests to Ringback's services over AMQP, with failures as HTTP problems."""

from http import HTTPStatus
from typing import Any, Final

from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_client import NoResponseError, RpcClient, UnavailableError
from shared.contracts.requests import Failure, FailureCode, RpcOperation
from shared.http.problem import ProblemError

# Seconds. A lost broker or database is usually back after two, or only after minutes.
RETRY_AFTER: Final = {"Retry-After": "2"}

_STATUS: Final = {
    FailureCode.INVALID: HTTPStatus.UNPROCESSABLE_ENTITY,
    FailureCode.CONFLICT: HTTPStatus.CONFLICT,
    FailureCode.NOT_KEPT: HTTPStatus.CONFLICT,
    FailureCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    FailureCode.PRECONDITION_FAILED: HTTPStatus.PRECONDITION_FAILED,
    FailureCode.FORBIDDEN: HTTPStatus.FORBIDDEN,
    FailureCode.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    FailureCode.TOO_MANY_REQUESTS: HTTPStatus.TOO_MANY_REQUESTS,
    FailureCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    FailureCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}


class ServiceClient:
    """A client of all services that respond to requests over AMQP; `timeout` is in seconds."""

    def __init__(self, client: RpcClient, *, timeout: float) -> None:
        self._client = client
        self._timeout = timeout

    async def request(
        self, operation: RpcOperation[Any], body: bytes, context: RequestContext
    ) -> Any:
        """Send a request to the service of this operation, and return the value it responds with.

        Raises:
            ProblemError: the service's failure; 503 if nothing was done; 504 if that is unknown.
        """
        try:
            response = await self._client.request(
                operation.queue, operation.name, body, context=context, timeout=self._timeout
            )
        except UnavailableError as error:
            raise unavailable(f"{operation.service}: {error}") from None
        except NoResponseError as error:
            raise _unknown_effect(f"{operation.service}: {error}") from None
        if isinstance(response, Failure):
            raise problem_of(response)
        return response


def problem_of(failure: Failure) -> ProblemError:
    """Return the problem that reports a service's failure."""
    if failure.code is FailureCode.UNAVAILABLE:
        return unavailable(failure.detail)
    if failure.code is FailureCode.UNKNOWN:
        return _unknown_effect(failure.detail)
    if failure.code is FailureCode.NOT_FOUND:
        return not_found(failure.detail)
    wait = failure.retry_after
    return ProblemError(
        _STATUS[failure.code],
        failure.code.value,
        failure.detail,
        errors=failure.errors,
        headers=None if wait is None else {"Retry-After": str(wait)},
    )


def not_found(detail: str) -> ProblemError:
    """Return the problem 404, which has a `result` like the responses to changes."""
    return ProblemError(HTTPStatus.NOT_FOUND, "not_found", detail, members={"result": "not_found"})


def _unknown_effect(cause: str) -> ProblemError:
    return unknown(
        f"{cause}. It is unknown whether the request was carried out. Check the status, or repeat"
        " the request with the same Idempotency-Key."
    )


def unavailable(detail: str) -> ProblemError:
    """Return the problem 503: nothing was done."""
    return ProblemError(
        HTTPStatus.SERVICE_UNAVAILABLE, FailureCode.UNAVAILABLE.value, detail, headers=RETRY_AFTER
    )


def unknown(detail: str) -> ProblemError:
    """Return the problem 504: it is unknown whether the request was carried out."""
    return ProblemError(HTTPStatus.GATEWAY_TIMEOUT, "no_answer", detail)
