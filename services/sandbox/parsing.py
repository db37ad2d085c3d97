"""Reads what a request says, a JSON body or a query, or says what is wrong with it."""

import json
from collections.abc import Mapping, Sequence
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_Model = TypeVar("_Model", bound=BaseModel)

PROBLEM = "application/problem+json"


def parsed(model: type[_Model], given: Mapping[str, str] | bytes) -> _Model:
    """Read a JSON body or a query.

    Raises:
        web.HTTPUnprocessableEntity: with every wrong field named (RFC 9457).
    """
    try:
        if isinstance(given, bytes):
            return model.model_validate_json(given)
        return model.model_validate({name: value for name, value in given.items() if value})
    except ValidationError as error:
        problem = {
            "type": "about:blank",
            "title": "Unprocessable Content",
            "status": 422,
            "detail": "Not understood; nothing was changed.",
            "errors": faults(error.errors()),
        }
        raise web.HTTPUnprocessableEntity(text=json.dumps(problem), content_type=PROBLEM) from None


def faults(errors: Sequence[ErrorDetails]) -> list[dict[str, str]]:
    """Name each wrong field, and say what is wrong with it."""
    return [
        {
            "field": _field(fault["loc"]) or "body",
            "message": fault["msg"].removeprefix("Value error, "),
        }
        for fault in errors
    ]


def _field(location: tuple[int | str, ...]) -> str:
    """Name a field as the sender wrote it: without the kind that pydantic puts after the union."""
    if location[:1] == ("behaviour",):
        location = (location[0], *location[2:])
    return ".".join(map(str, location))
