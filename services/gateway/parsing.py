"""Parsing of HTTP requests: the JSON body, the query and the headers."""

import asyncio
import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic_core import from_json

from shared.contracts.requests import FieldError
from shared.http.problem import ProblemError

JSON: Final = "application/json"
IDEMPOTENCY_KEY: Final = "Idempotency-Key"
IDEMPOTENCY_KEY_PATTERN: Final = r"^[\x21-\x7e]{1,255}$"
# The parsed query parameters of a request.
QUERY: Final[web.RequestKey[dict[str, Any]]] = web.RequestKey("query", dict)
# Seconds for the whole body to arrive; a slower body would only hold memory.
BODY_TIMEOUT: Final = 30.0

# The header of a 415 that lists the supported media types (W3C LDP, RFC 5789), otherwise Accept.
_ACCEPT: Final = {hdrs.METH_POST: "Accept-Post", hdrs.METH_PATCH: "Accept-Patch"}
_KEY: Final = re.compile(IDEMPOTENCY_KEY_PATTERN.strip("^$"))
_ETAG: Final = re.compile(r'(W/)?"[\x21\x23-\x2b\x2d-\x7e]*"')
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")


async def json_body(request: web.Request, max_bytes: int) -> tuple[bytes, Any]:
    """Return the body, as bytes and parsed; at most `max_bytes` long.

    Raises:
        ProblemError: 415, 413, 408, or 400 with the position of the first error.
    """
    check_media_type(request, (JSON,))
    body = await read_body(request, max_bytes)
    try:
        # NaN, Infinity and unpaired surrogates are not valid JSON.
        return body, from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ProblemError(
            HTTPStatus.BAD_REQUEST, "malformed", f"The body is not JSON: {error}."
        ) from None


def check_media_type(request: web.Request, supported: Sequence[str]) -> str:
    """Return the media type of the body, which is one of these.

    Raises:
        ProblemError: 415; it is not, or the body is compressed.
    """
    if request.content_type not in supported:
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            f"Send the body with Content-Type: {' or '.join(supported)}.",
            headers={_ACCEPT.get(request.method, hdrs.ACCEPT): ", ".join(supported)},
        )
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "Send the body without Content-Encoding.",
            headers={"Accept-Encoding": "identity"},
        )
    return request.content_type


async def body_chunks(request: web.Request) -> AsyncIterator[bytes]:
    """Yield the body in chunks as they arrive. It may have any length.

    Raises:
        ProblemError: 408, or 400 if it is not valid HTTP.
    """
    while True:
        try:
            async with asyncio.timeout(BODY_TIMEOUT):
                chunk = await request.content.readany()
        except TimeoutError:
            raise ProblemError(
                HTTPStatus.REQUEST_TIMEOUT,
                "timeout",
                f"No part of the body arrived for {BODY_TIMEOUT:.0f} s.",
            ) from None
        except HttpProcessingError:  # its text repeats a part of the body
            raise _invalid_http() from None
        if not chunk:
            return
        yield chunk


async def read_body(request: web.Request, max_bytes: int) -> bytes:
    """Return the body, at most `max_bytes` long.

    Raises:
        ProblemError: 413, 408, or 400 if it is not valid HTTP.
    """
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            body = await request.read()
    except TimeoutError:
        raise ProblemError(
            HTTPStatus.REQUEST_TIMEOUT,
            "timeout",
            f"The body did not arrive within {BODY_TIMEOUT:.0f} s.",
        ) from None
    except HttpProcessingError:  # its text repeats a part of the body
        raise _invalid_http() from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(max_bytes) from None
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    return body


def _invalid_http() -> ProblemError:
    return ProblemError(HTTPStatus.BAD_REQUEST, "malformed", "The body is not valid HTTP.")


def _too_large(max_bytes: int) -> ProblemError:
    return ProblemError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "too_large",
        f"The body is larger than {max_bytes} bytes.",
    )


def parse_query(request: web.Request, schemas: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the query parameters; integers become numbers. Only these names are accepted.

    The service that gets them validates text values.

    Raises:
        ProblemError: 422; names every parameter that is unknown, repeated, or not as declared.
    """
    given: dict[str, Any] = {}
    errors: list[FieldError] = []
    for name, value in request.query.items():
        if name not in schemas:
            known = ", ".join(schemas) or "none"
            fault: str | None = f"unknown parameter; known: {known}"
        elif name in given:
            fault = "is given more than once"
        else:
            fault = _fault(value, schemas[name])
            given[name] = value
        if fault is not None:
            errors.append(FieldError(field=name, message=fault))
    if errors:
        raise invalid(errors)
    return {
        name: int(value) if schemas[name].get("type") == "integer" else value
        for name, value in given.items()
    }


def _fault(value: str, schema: Mapping[str, Any]) -> str | None:
    """Return why a parameter is not as declared; None if it is."""
    if schema.get("type") == "integer":
        if not _INTEGER.fullmatch(value):
            return "must be an integer"
        least, most = schema["minimum"], schema["maximum"]
        return None if least <= int(value) <= most else f"must be from {least} to {most}"
    known = schema.get("enum")
    return None if known is None or value in known else f"must be one of: {', '.join(known)}"


def idempotency_key(request: web.Request) -> str | None:
    """Return the header `Idempotency-Key`, if present.

    Raises:
        ProblemError: 422; the key is not 1 to 255 characters of visible ASCII.
    """
    key = request.headers.get(IDEMPOTENCY_KEY)
    if key is not None and not _KEY.fullmatch(key):
        message = "must be 1 to 255 characters of visible ASCII, without spaces"
        raise invalid([FieldError(field=IDEMPOTENCY_KEY, message=message)])
    return key


def if_match(request: web.Request) -> dict[str, list[str]]:
    """Return the entity tags of the header `If-Match` as a field of a request, if present.

    Raises:
        ProblemError: 422; see `entity_tags`.
    """
    tags = entity_tags(request, hdrs.IF_MATCH)
    return {} if tags is None else {"if_match": tags}


def entity_tags(request: web.Request, header: str) -> list[str] | None:
    """Return the entity tags of a header, or None if it is absent.

    Raises:
        ProblemError: 422; the header is not `*` or a list of entity tags.
    """
    if header not in request.headers:
        return None
    tags = [tag.strip() for tag in ",".join(request.headers.getall(header)).split(",")]
    if tags != ["*"] and not all(_ETAG.fullmatch(tag) for tag in tags):
        message = 'must be * or a list of entity tags, such as "5f0c7b1e"'
        raise invalid([FieldError(field=header, message=message)])
    return tags


def matches(tags: Collection[str] | None, etag: str) -> bool:
    """Return whether an entity tag is one of these. A proxy may have made them weak (`W/`)."""
    return any(tag in ("*", etag, f"W/{etag}") for tag in tags or ())


def parse_uuid(text: str) -> str | None:
    """Return the UUID in its canonical form, or None if the text is not a UUID."""
    try:
        return str(UUID(text))
    except ValueError:
        return None


def invalid(errors: Sequence[FieldError]) -> ProblemError:
    """Return the problem 422 with these rejected fields."""
    count = len(errors)
    detail = "1 field is invalid" if count == 1 else f"{count} fields are invalid"
    return ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", detail, errors=errors)
