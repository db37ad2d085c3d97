"""The data APIs that producers name in their events: users, movies, series, reviews."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from yarl import URL

from services.sandbox.memory import Told
from services.sandbox.misbehaviour import misbehave
from services.sandbox.movies import Catalogue
from services.sandbox.orders import ApiOrder, Behaviour, Delay
from services.sandbox.parsing import parsed
from services.sandbox.users import Directory

NAMES = ("auth", "fastapi", "activity_api")
LARGEST_PAGE = 1000
_ID = "{id:[0-9a-fA-F-]{36}}"

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Paged(BaseModel):
    """What every list can be asked for.

    ``form`` ``results`` puts the page into ``{"results": …}``; ``endless`` lists never end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    page_number: int = Field(1, ge=1, le=10_000_000)
    page_size: int = Field(50, ge=1, le=LARGEST_PAGE)
    form: str = Field("list", pattern="^(list|results)$")


class UserQuery(_Paged):
    """Which users are asked for; what is left out does not narrow them."""

    id: UUID | None = None
    is_active: bool | None = None
    email_notifications: bool | None = None
    sms_notifications: bool | None = None
    endless: bool = False


class MovieQuery(_Paged):
    """Which movies are asked for."""

    new: bool | None = None


class DataApis:
    """The HTTP handlers; each API follows an order of its own."""

    def __init__(self, directory: Directory, url: URL | None) -> None:
        self._directory = directory
        self._url = url
        self._orders = {name: (ApiOrder(), Told[Behaviour]()) for name in NAMES}

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
        # With and without the slash at the end: events are written both ways.
        asked = [
            web.get(written, self._obedient(handler))
            for path, handler in apis.items()
            for written in (path, path.removesuffix("/"))
        ]
        name = f"{{name:{'|'.join(NAMES)}}}"
        return [
            *asked,
            web.get(f"/api/apis/{name}/order", self.show_order),
            web.put(f"/api/apis/{name}/order", self.take_order),
        ]

    async def users(self, request: web.Request) -> web.Response:
        """Answer with a page of users."""
        wanted = parsed(UserQuery, request.query)
        fields = {"is_active", "email_notifications", "sms_notifications"}
        settings = wanted.model_dump(include=fields, exclude_none=True)
        if wanted.id is None:
            number, size = wanted.page_number, wanted.page_size
            found = self._directory.page(number, size, settings, endless=wanted.endless)
            return _page(wanted, found)
        user_number = self._directory.number_of(wanted.id)
        user = None if user_number is None else self._directory.user(user_number)
        matches = user and all(user[name] == value for name, value in settings.items())
        return _page(wanted, [user] if matches and wanted.page_number == 1 else [])

    async def user(self, request: web.Request) -> web.Response:
        """Answer with one user."""
        number = self._directory.number_of(_identity(request))
        if number is None:
            raise _nothing("user")
        return web.json_response(self._directory.user(number))

    async def movies(self, request: web.Request) -> web.Response:
        """Answer with a page of movies."""
        wanted = parsed(MovieQuery, request.query)
        return _page(wanted, _cut(self._catalogue(request).movies(new=wanted.new), wanted))

    async def movie(self, request: web.Request) -> web.Response:
        """Answer with one movie."""
        movie = self._catalogue(request).movie(_identity(request))
        if movie is None:
            raise _nothing("movie")
        return web.json_response(movie)

    async def series(self, request: web.Request) -> web.Response:
        """Answer with a page of series."""
        wanted = parsed(_Paged, request.query)
        return _page(wanted, _cut(self._catalogue(request).series(), wanted))

    async def one_series(self, request: web.Request) -> web.Response:
        """Answer with one series."""
        series = self._catalogue(request).one_series(_identity(request))
        if series is None:
            raise _nothing("series")
        return web.json_response(series)

    async def review(self, request: web.Request) -> web.Response:
        """Answer with a review; its author is a user who can be told."""
        identity = request.match_info["id"]
        author = next(self._directory.reachable(start=sum(identity.encode())))
        return web.json_response(self._catalogue(request).review(identity, author["id"]))

    async def show_order(self, request: web.Request) -> web.Response:
        """Answer with an API's order."""
        order, _ = self._orders[request.match_info["name"]]
        return web.json_response({"order": order.model_dump(mode="json")})

    async def take_order(self, request: web.Request) -> web.Response:
        """Take an order in place of the one before."""
        order = parsed(ApiOrder, await request.read())
        told = Told[Behaviour](order.behaviour, order.times)
        self._orders[request.match_info["name"]] = order, told
        return await self.show_order(request)

    def _obedient(self, handler: _Handler) -> _Handler:
        """Let the API's order come before the handler."""

        async def handle(request: web.Request) -> web.StreamResponse:
            _, told = self._orders[request.path.split("/")[1]]
            behaviour = told.meet()
            if isinstance(behaviour, Delay):
                await asyncio.sleep(behaviour.seconds)
            elif behaviour is not None:
                return await misbehave(behaviour, request)
            return await handler(request)

        return handle

    def _catalogue(self, request: web.Request) -> Catalogue:
        return Catalogue(base(self._url, request))


def base(url: URL | None, request: web.Request) -> str:
    """Return what links to the sandbox begin with: as configured, else as it was asked."""
    return str(url or request.url.origin()).rstrip("/")


def _identity(request: web.Request) -> UUID:
    try:
        return UUID(request.match_info["id"])
    except ValueError:
        raise _nothing("thing") from None


def _nothing(kind: str) -> web.HTTPNotFound:
    return web.HTTPNotFound(
        text=f'{{"detail": "there is no such {kind}"}}', content_type="application/json"
    )


def _cut(items: list[dict[str, Any]], wanted: _Paged) -> list[dict[str, Any]]:
    return items[(wanted.page_number - 1) * wanted.page_size :][: wanted.page_size]


def _page(wanted: _Paged, items: list[Any]) -> web.Response:
    return web.json_response({"results": items} if wanted.form == "results" else items)
