"""The data APIs that events link to: users, movies, series, reviews."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any
from uuid import UUID

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from yarl import URL

from services.sandbox.behaviours import ApiSettings, Behaviour, Delay
from services.sandbox.memory import LimitedBehaviour
from services.sandbox.movies import Catalogue
from services.sandbox.parsing import parse
from services.sandbox.responses import respond
from services.sandbox.users import Directory

NAMES = ("auth", "fastapi", "activity_api")
MAX_PAGE_SIZE = 1000
_ID = "{id:[0-9a-fA-F-]{36}}"

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Paged(BaseModel):
    """The query of every list.

    The form `results` wraps the page in `{"results": …}`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    page_number: int = Field(1, ge=1, le=10_000_000)
    page_size: int = Field(50, ge=1, le=MAX_PAGE_SIZE)
    form: str = Field("list", pattern="^(list|results)$")


class UserQuery(_Paged):
    """The query of the list of users. With `endless`, the list never ends."""

    id: UUID | None = None
    is_active: bool | None = None
    email_notifications: bool | None = None
    sms_notifications: bool | None = None
    endless: bool = False


class MovieQuery(_Paged):
    """The query of the list of movies."""

    new: bool | None = None


class DataApis:
    """The HTTP handlers; each API has its own settings."""

    def __init__(self, directory: Directory, url: URL | None) -> None:
        self._directory = directory
        self._url = url
        self._settings = {name: (ApiSettings(), LimitedBehaviour[Behaviour]()) for name in NAMES}

    def routes(self) -> list[web.RouteDef]:
        """Return every route."""
        apis: dict[str, _Handler] = {
            "/auth/api/v1/users/": self.users,
            f"/auth/api/v1/users/{_ID}/": self.user,
            "/fastapi/api/v1/movies/": self.movies,
            f"/fastapi/api/v1/movies/{_ID}/": self.movie,
            "/fastapi/api/v1/series/": self.series,
            f"/fastapi/api/v1/series/{_ID}/": self.one_series,
            "/activity_api/api/v1/reviews/{id:[\\w-]{1,64}}/": self.review,
        }
        # With and without the trailing slash: events use both forms.
        data = [
            web.get(written, self._with_behaviour(handler))
            for path, handler in apis.items()
            for written in (path, path.removesuffix("/"))
        ]
        name = f"{{name:{'|'.join(NAMES)}}}"
        return [
            *data,
            web.get(f"/api/apis/{name}/settings", self.show_settings),
            web.put(f"/api/apis/{name}/settings", self.replace_settings),
        ]

    async def users(self, request: web.Request) -> web.Response:
        """Return a page of users."""
        query = parse(UserQuery, request.query)
        fields = {"is_active", "email_notifications", "sms_notifications"}
        settings = query.model_dump(include=fields, exclude_none=True)
        if query.id is None:
            number, size = query.page_number, query.page_size
            found = self._directory.page(number, size, settings, endless=query.endless)
            return _page(query, found)
        user_number = self._directory.number_of(query.id)
        user = None if user_number is None else self._directory.user(user_number)
        matches = user and all(user[name] == value for name, value in settings.items())
        return _page(query, [user] if matches and query.page_number == 1 else [])

    async def user(self, request: web.Request) -> web.Response:
        """Return one user."""
        number = self._directory.number_of(_identity(request))
        if number is None:
            raise _not_found("user")
        return web.json_response(self._directory.user(number))

    async def movies(self, request: web.Request) -> web.Response:
        """Return a page of movies."""
        query = parse(MovieQuery, request.query)
        return _page(query, _slice(self._catalogue(request).movies(new=query.new), query))

    async def movie(self, request: web.Request) -> web.Response:
        """Return one movie."""
        movie = self._catalogue(request).movie(_identity(request))
        if movie is None:
            raise _not_found("movie")
        return web.json_response(movie)

    async def series(self, request: web.Request) -> web.Response:
        """Return a page of series."""
        query = parse(_Paged, request.query)
        return _page(query, _slice(self._catalogue(request).series(), query))

    async def one_series(self, request: web.Request) -> web.Response:
        """Return one series."""
        series = self._catalogue(request).one_series(_identity(request))
        if series is None:
            raise _not_found("series")
        return web.json_response(series)

    async def review(self, request: web.Request) -> web.Response:
        """Return a review; its author is a user who can be notified."""
        identity = request.match_info["id"]
        author = next(self._directory.reachable(start=sum(identity.encode())))
        return web.json_response(self._catalogue(request).review(identity, author["id"]))

    async def show_settings(self, request: web.Request) -> web.Response:
        """Return an API's settings."""
        settings, _ = self._settings[request.match_info["name"]]
        return web.json_response({"settings": settings.model_dump(mode="json")})

    async def replace_settings(self, request: web.Request) -> web.Response:
        """Replace an API's settings."""
        settings = parse(ApiSettings, await request.read())
        limited = LimitedBehaviour[Behaviour](settings.behaviour, settings.times)
        self._settings[request.match_info["name"]] = settings, limited
        return await self.show_settings(request)

    def _with_behaviour(self, handler: _Handler) -> _Handler:
        """Apply the API's behaviour before its handler."""

        @wraps(handler)
        async def handle(request: web.Request) -> web.StreamResponse:
            _, limited = self._settings[request.path.split("/")[1]]
            behaviour = limited.next()
            if isinstance(behaviour, Delay):
                await asyncio.sleep(behaviour.seconds)
            elif behaviour is not None:
                return await respond(behaviour, request)
            return await handler(request)

        return handle

    def _catalogue(self, request: web.Request) -> Catalogue:
        return Catalogue(base_url(self._url, request))


def base_url(url: URL | None, request: web.Request) -> str:
    """Return the base of links to the sandbox: the configured URL, or else that of the request."""
    return str(url or request.url.origin()).rstrip("/")


def _identity(request: web.Request) -> UUID:
    try:
        return UUID(request.match_info["id"])
    except ValueError:
        raise _not_found("resource") from None


def _not_found(kind: str) -> web.HTTPNotFound:
    return web.HTTPNotFound(
        text=f'{{"detail": "{kind} not found"}}', content_type="application/json"
    )


def _slice(items: list[dict[str, Any]], query: _Paged) -> list[dict[str, Any]]:
    return items[(query.page_number - 1) * query.page_size :][: query.page_size]


def _page(query: _Paged, items: list[Any]) -> web.Response:
    return web.json_response({"results": items} if query.form == "results" else items)
