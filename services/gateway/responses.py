"""Successful HTTP responses."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from pydantic_core import to_json

from services.gateway.parsing import JSON

# Every response is for one client only, so no cache may store it.
NO_STORE: Final = {"Cache-Control": "no-store"}


def json_response(
    value: Any, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a response with this value as JSON."""
    return web.Response(
        status=status,
        body=to_json(value),
        content_type=JSON,
        headers=NO_STORE if headers is None else {**NO_STORE, **headers},
    )


def json_text_response(text: str) -> web.Response:
    """Return a response with a body that is JSON already."""
    return web.Response(text=text, content_type=JSON, headers=NO_STORE)
