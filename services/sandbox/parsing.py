"""Parses the JSON body or query of a request, or rejects it with every wrong field."""

import json
from collections.abc import Mapping, Sequence
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_Model = TypeVar("_Model", bound=BaseModel)

PROBLEM = "application/problem+json"


def parse(model: type[_Model], data: Mapping[str, str] | bytes) -> _Model:
    """Parse a JSON body or a query.

    Raises:
        web.HTTPUnprocessableEntity: it is not valid; names every wrong field (RFC 9457).
    """
    try:
        if isinstance(data, bytes):
            return model.model_validate_json(data)
        return model.model_validate({name: value for name, value in data.items() if value})
    except ValidationError as error:
        problem = {
            "type": "about:blank",
            "title": "Unprocessable Content",
            "status": 422,
            "detail": "The request is not valid; nothing was changed.",
            "errors": field_errors(error.errors()),
        }
        raise web.HTTPUnprocessableEntity(text=json.dumps(problem), content_type=PROBLEM) from None


def field_errors(errors: Sequence[ErrorDetails]) -> list[dict[str, str]]:
    """Return the name and the error of each wrong field."""
    return [
        {
            "field": _field(fault["loc"]) or "body",
            "message": fault["msg"].removeprefix("Value error, "),
        }
        for fault in errors
    ]


def _field(location: tuple[int | str, ...]) -> str:
    """Return a field's path without the kind that pydantic adds after a union."""
    if location[:1] == ("behaviour",):
        location = (location[0], *location[2:])
    return ".".join(map(str, location))
