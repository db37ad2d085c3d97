"""The routes of the API documents: OpenAPI, AsyncAPI, and Swagger UI at `/docs/`.

The files of Swagger UI come from the wheel `swagger-ui-py`, so it works without internet access.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from pydantic_core import to_json

JSON: Final = "application/json"
# No resource comes from another server. Swagger UI needs inline styles and data: images.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_OUR_FILES: Final = ("docs.html", "docs.js", "docs.css")
_SWAGGER_FILES: Final = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")


def routes(openapi: Mapping[str, Any], asyncapi: Mapping[str, Any]) -> Sequence[web.RouteDef]:
    """Return the routes of both documents and of Swagger UI."""
    here = Path(__file__).parent
    files = {name: here / name for name in _OUR_FILES} | {
        name: _swagger_folder() / name for name in _SWAGGER_FILES
    }

    async def page(_: web.Request) -> web.StreamResponse:
        """Return Swagger UI."""
        return web.FileResponse(files["docs.html"], headers=_HEADERS)

    async def file(request: web.Request) -> web.StreamResponse:
        """Return a file of Swagger UI."""
        found = files.get(request.match_info["file"])
        if found is None:
            raise web.HTTPNotFound
        return web.FileResponse(found, headers=_HEADERS)

    async def without_slash(_: web.Request) -> web.StreamResponse:
        """Redirect to Swagger UI."""
        return web.Response(status=301, headers={"Location": "/docs/"})

    return [
        web.get("/openapi.json", _document(openapi)),
        web.get("/asyncapi.json", _document(asyncapi)),
        web.get("/docs", without_slash),
        web.get("/docs/", page),
        web.get("/docs/{file}", file),
    ]


def _document(content: Mapping[str, Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
    body = to_json(content)

    async def document(_: web.Request) -> web.Response:
        """Return the description of the API for tools."""
        return web.Response(body=body, content_type=JSON)

    return document


def _swagger_folder() -> Path:
    """Return the folder of Swagger UI; the wheel is not imported, since it needs frameworks."""
    spec = find_spec("swagger_ui")
    assert spec is not None  # noqa: S101 - a dependency of Ringback
    assert spec.submodule_search_locations  # noqa: S101 - a package
    return Path(spec.submodule_search_locations[0]) / "static"
