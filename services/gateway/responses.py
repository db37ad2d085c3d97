"""What an HTTP request is answered with, when all is well."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from pydantic_core import to_json

from services.gateway.parsing import JSON

# What is asked over HTTP is the caller's own; no cache on the way may keep it.
_NO_STORE: Final = {"Cache-Control": "no-store"}


def json_response(
    value: Any, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> web.Response:
    """The value as JSON."""
    return web.Response(
        status=status,
        body=to_json(value),
        content_type=JSON,
        headers=_NO_STORE if headers is None else {**_NO_STORE, **headers},
    )
