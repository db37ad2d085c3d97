"""The codes of the messenger. Every response has one, except those with events.

Errors on its paths are `{"code", "description"}` instead of problems.
"""

from collections.abc import Mapping
from enum import IntEnum
from http import HTTPStatus
from typing import Annotated, Any, Final

from aiohttp import hdrs, web
from pydantic import BaseModel, ConfigDict, Field

from services.gateway.responses import json_response
from shared.http.problem import ProblemError

# The first segments of the messenger's paths.
_SEGMENTS: Final = frozenset({"users", "messages", "events"})
_CHALLENGE: Final[Mapping[str, str]] = {hdrs.WWW_AUTHENTICATE: 'Bearer realm="ringback messenger"'}
_CODE: Final = "code"


class Code(IntEnum):
    """The result of a request."""

    OK = 10
    INVALID_TOKEN = -1
    MESSAGE_NOT_SENT = -2
    INVALID_PARAMETERS = -3
    NAME_TOO_LONG = -4
    PASSWORD_TOO_SHORT = -5
    USER_NOT_FOUND = -6
    TRY_AGAIN_LATER = -7


_TEXTS: Final = {
    Code.INVALID_TOKEN: "Invalid token",
    Code.MESSAGE_NOT_SENT: "Message not sent",
    Code.INVALID_PARAMETERS: "Parameters are invalid",
    Code.NAME_TOO_LONG: "Name is longer than 15 characters",
    Code.PASSWORD_TOO_SHORT: "Password is shorter than 8 characters",
    Code.USER_NOT_FOUND: "User does not exist",
    Code.TRY_AGAIN_LATER: "Try again later",
}
# The descriptions of these codes continue with the cause.
_WITH_CAUSE: Final = frozenset(
    {Code.MESSAGE_NOT_SENT, Code.INVALID_PARAMETERS, Code.TRY_AGAIN_LATER}
)
# The cause of a 504.
UNKNOWN_EFFECT: Final = "there was no response in time, and the effect is unknown"


class CodedError(BaseModel):
    """The body of an error response of the messenger."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: Annotated[int, Field(ge=-7, le=-1)]
    description: str = Field(description="A description for people.")


def is_messenger(path: str) -> bool:
    """Return whether errors on this path have codes."""
    return path.lstrip("/").partition("/")[0] in _SEGMENTS


def coded_error(
    status: HTTPStatus, code: Code, cause: str = "", *, headers: Mapping[str, str] | None = None
) -> ProblemError:
    """Return an error with this code."""
    return ProblemError(status, code.name.lower(), cause, headers=headers, members={_CODE: code})


def recoded(problem: ProblemError, codes: Mapping[HTTPStatus, Code]) -> ProblemError:
    """Return the error with the code that `codes` has for its status, if any."""
    code = codes.get(problem.status)
    if code is None:
        return problem
    return coded_error(problem.status, code, str(problem), headers=problem.headers)


def error_response(problem: ProblemError) -> web.Response:
    """Return an error as code and description."""
    code = problem.members.get(_CODE, _default(problem.status))
    headers = _CHALLENGE if problem.status is HTTPStatus.UNAUTHORIZED else problem.headers
    return json_response(error_body(code, _cause(problem)), problem.status, headers)


def error_body(code: Code, cause: str = "") -> dict[str, Any]:
    """Return the body of an error response."""
    text = _TEXTS[code]
    return {
        _CODE: code.value,
        "description": f"{text}: {cause}" if cause and code in _WITH_CAUSE else text,
    }


def _cause(problem: ProblemError) -> str:
    if problem.status is HTTPStatus.GATEWAY_TIMEOUT:
        return UNKNOWN_EFFECT
    return "; ".join(map(str, problem.errors)) or str(problem)


def _default(status: HTTPStatus) -> Code:
    if status is HTTPStatus.UNAUTHORIZED:
        return Code.INVALID_TOKEN
    if status is HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Code.TRY_AGAIN_LATER
    return Code.INVALID_PARAMETERS
