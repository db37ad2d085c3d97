"""What the declarations have in common: answers, and parameters of creations and lists."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from services.gateway.parsing import IDEMPOTENCY_KEY
from shared.http.openapi import Body, Parameter, Response
from shared.http.problem import PROBLEM_JSON, Problem


def ok(text: str, model: type[BaseModel], example: Any = None) -> Response:
    """An answer in this form."""
    return Response(text, Body(model, {} if example is None else {"Response": example}))


def problem(text: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error."""
    return Response(text, Body(Problem, media_type=PROBLEM_JSON), headers or {})


def failures(not_now: str, unknown: str) -> Mapping[int, Response]:
    """What any operation may answer; these say what 503 and 504 come from."""
    return {
        401: problem(
            "The ticket is not valid, or one is needed.",
            {"WWW-Authenticate": "How to say who calls."},
        ),
        422: problem("Something is wrong; `errors` names every field."),
        503: problem(f"Not now: {not_now}. Nothing was done.", {"Retry-After": "Seconds."}),
        504: problem(f"{unknown}: what was done is unknown."),
    }


BODY: Final = {
    400: problem("The body is not JSON; the position is named."),
    413: problem("The body is too large."),
    415: problem("The body's media type is not `application/json`."),
}


def idempotency_key(text: str) -> Parameter:
    """The header by which a creation may be repeated."""
    return Parameter(
        IDEMPOTENCY_KEY, "header", text, {"type": "string", "minLength": 1, "maxLength": 255}
    )


def identity(what: str, example: str) -> Parameter:
    """The id in the path."""
    return Parameter(
        "id", "path", f"The {what}'s id.", {"type": "string", "format": "uuid"}, example=example
    )


def in_state(statuses: list[str]) -> Parameter:
    """Narrows a list."""
    schema = {"type": "string", "enum": statuses}
    return Parameter("status", "query", "Only those in this state.", schema)


def page(*, longest: int, default: int) -> tuple[Parameter, ...]:
    """What picks a page of a list."""
    return (
        Parameter("cursor", "query", "`next_cursor` of the page before."),
        Parameter(
            "limit",
            "query",
            "How many at most.",
            {"type": "integer", "minimum": 1, "maximum": longest, "default": default},
        ),
    )
