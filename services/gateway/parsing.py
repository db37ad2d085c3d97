"""What an HTTP request says: its body as JSON, its query, its headers, or why it is refused."""

import asyncio
import re
from collections.abc import Collection, Sequence
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

from aiohttp import hdrs, web
from pydantic_core import from_json

from shared.contracts.requests import FieldError
from shared.http.problem import ProblemError

JSON: Final = "application/json"
IDEMPOTENCY_KEY: Final = "Idempotency-Key"
# Seconds for a body to arrive whole; a slower one only holds memory.
BODY_SECONDS: Final = 30.0

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")


async def json_body(request: web.Request, most: int) -> tuple[bytes, Any]:
    """The body as it came, and as what it says; at most so many bytes.

    Raises:
        ProblemError: 415, 413, 408, or 400 with the position of the first fault.
    """
    if request.content_type != JSON:
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            f"send the body as Content-Type: {JSON}",
            headers={"Accept-Post": JSON},
        )
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "send the body without Content-Encoding",
            headers={"Accept-Encoding": "identity"},
        )
    if (request.content_length or 0) > most:
        raise _too_large(most)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.read()
    except TimeoutError:
        raise ProblemError(
            HTTPStatus.REQUEST_TIMEOUT,
            "timeout",
            f"the body did not arrive within {BODY_SECONDS:.0f} s",
        ) from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(most) from None
    if len(body) > most:
        raise _too_large(most)
    try:
        # Without NaN and Infinity, which are no JSON; nor half a surrogate pair.
        return body, from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ProblemError(
            HTTPStatus.BAD_REQUEST, "malformed", f"the body is not JSON: {error}"
        ) from None


def _too_large(most: int) -> ProblemError:
    return ProblemError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "too_large",
        f"the body is larger than {most} bytes",
    )


def query(request: web.Request, names: Collection[str]) -> dict[str, Any]:
    """The query's parameters, of which these are known; `limit` as a number.

    Raises:
        ProblemError: 422; one is unknown, given twice, or not a number.
    """
    given: dict[str, Any] = {}
    errors: list[FieldError] = []
    for name, value in request.query.items():
        if name not in names:
            known = ", ".join(names) or "none"
            errors.append(FieldError(field=name, message=f"no such parameter; known: {known}"))
        elif name in given:
            errors.append(FieldError(field=name, message="given more than once"))
        elif name == "limit" and not _INTEGER.fullmatch(value):
            errors.append(FieldError(field=name, message="must be a whole number"))
        else:
            given[name] = int(value) if name == "limit" else value
    if errors:
        raise invalid(errors)
    return given


def idempotency_key(request: web.Request) -> str | None:
    """The header `Idempotency-Key`, if there is one.

    Raises:
        ProblemError: 422; it is not 1 to 255 characters of visible ASCII.
    """
    key = request.headers.get(IDEMPOTENCY_KEY)
    if key is not None and not _KEY.fullmatch(key):
        message = "must be 1 to 255 characters of visible ASCII, without spaces"
        raise invalid([FieldError(field=IDEMPOTENCY_KEY, message=message)])
    return key


def uuid(identity: str) -> str | None:
    """An id from the path as ids are written; None for what can be none, so that nothing has it."""
    try:
        return str(UUID(identity))
    except ValueError:
        return None


def invalid(errors: Sequence[FieldError]) -> ProblemError:
    """422 with these wrong fields."""
    count = len(errors)
    detail = "1 field is wrong" if count == 1 else f"{count} fields are wrong"
    return ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", detail, errors=errors)
