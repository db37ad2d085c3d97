"""The templates of the pages, and the static files that they load."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from services.console import formatting

_HERE: Final = Path(__file__).parent
# A year. The URL of a file changes with its content.
_CACHED: Final = "public, max-age=31536000, immutable"
_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Asset:
    """A static file, and the URL under which browsers may keep it."""

    url: str
    body: bytes
    content_type: str


def environment() -> Environment:
    """Return the environment of the templates. It escapes every value."""
    templates = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    templates.filters |= {
        "count": formatting.count,
        "duration": formatting.duration,
        "share": formatting.share,
        "size": formatting.size,
        "ago": _ago,
    }
    return templates


def assets() -> Mapping[str, Asset]:
    """Return the static files by name."""
    found = {}
    for file in sorted((_HERE / "static").iterdir()):
        if file.suffix in _TYPES:
            body = file.read_bytes()
            version = hashlib.sha256(body).hexdigest()[:12]
            url = f"/static/{file.name}?v={version}"
            found[file.name] = Asset(url, body, _TYPES[file.suffix])
    return found


def asset_route(files: Mapping[str, Asset]) -> web.RouteDef:
    """Return the route of the static files."""

    async def static(request: web.Request) -> web.Response:
        """Return a static file."""
        asset = files.get(request.match_info["name"])
        if asset is None:
            raise web.HTTPNotFound
        headers = {"Cache-Control": _CACHED} if request.path_qs == asset.url else None
        return web.Response(
            body=asset.body, content_type=asset.content_type, charset="utf-8", headers=headers
        )

    return web.get("/static/{name}", static)


def _ago(value: Any) -> str:
    return formatting.ago(value, datetime.now(UTC))
