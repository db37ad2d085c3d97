"""Shared parts of the declarations of the messenger's routes."""

from collections.abc import Mapping
from typing import Final

from services.gateway.messenger.bodies import MEDIA_TYPES
from services.gateway.messenger.codes import UNKNOWN_EFFECT, Code, CodedError, error_body
from shared.http.openapi import Body, Response

TAG: Final = "messenger"
# The name of the scheme of routes that require a user's token.
TOKEN_SCHEME: Final = "token"  # noqa: S105 - a name
SIGNED_IN: Final = (TOKEN_SCHEME,)
ANYONE: Final = ()
EXAMPLE_TOKEN: Final = "u8WbP6yhWyF8DH0jPNUdMZGbqvTRvvzRbSpZwVqkGXc"  # noqa: S105 - public


def coded(
    description: str, *codes: tuple[Code, str], headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error response with an example of each code and its cause."""
    examples = {
        f"Code {code.value}{f': {cause}' if cause else ''}": error_body(code, cause)
        for code, cause in codes
    }
    return Response(description, Body(CodedError, examples), headers or {})


_RETRY_AFTER: Final = {"Retry-After": "Seconds to wait before the next request."}
_CHALLENGE: Final = {"WWW-Authenticate": "How to authenticate."}

INVALID_TOKEN: Final = {
    401: coded(
        "The token is missing or not valid, or the request has two different tokens.",
        (Code.INVALID_TOKEN, ""),
        headers=_CHALLENGE,
    )
}
WRONG_PASSWORD: Final = {
    401: coded("The name or the password is wrong.", (Code.USER_NOT_FOUND, ""), headers=_CHALLENGE)
}
BODY_FAILURES: Final = {
    400: coded(
        "The body is not JSON or a form.",
        (Code.INVALID_PARAMETERS, "the body is not a form in UTF-8"),
    ),
    408: coded(
        "The body did not arrive in time.",
        (Code.INVALID_PARAMETERS, "The body did not arrive within 30 s."),
    ),
    413: coded(
        "The body is too large.",
        (Code.INVALID_PARAMETERS, "The body is larger than 131072 bytes."),
    ),
    415: coded(
        "The media type of the body is not JSON or a form.",
        (
            Code.INVALID_PARAMETERS,
            f"Send the body with Content-Type: {' or '.join(MEDIA_TYPES)}.",
        ),
    ),
}


def invalid_parameters(cause: str, *others: Code) -> Mapping[int, Response]:
    """Return the error response for fields that are not valid, with its possible codes."""
    codes = ((Code.INVALID_PARAMETERS, cause), *((code, "") for code in others))
    return {422: coded("A field is missing or not valid.", *codes)}


def failures(unavailable: Code = Code.TRY_AGAIN_LATER) -> Mapping[int, Response]:
    """Return the error responses of every route; 503 and 504 have the code `unavailable`."""
    return {
        429: coded(
            "A limit is exceeded.",
            (Code.TRY_AGAIN_LATER, "the limit is exceeded"),
            headers=_RETRY_AFTER,
        ),
        500: coded("A bug in Ringback.", (Code.TRY_AGAIN_LATER, "Internal error.")),
        503: coded(
            "The broker, the database or subscriptions is unavailable. The request had no effect.",
            (unavailable, "subscriptions: no service consumes these requests"),
            headers=_RETRY_AFTER,
        ),
        504: coded(
            "Subscriptions did not respond in time. It is unknown whether the request was carried"
            " out.",
            (unavailable, UNKNOWN_EFFECT),
        ),
    }
