"""User lists and template data, fetched from the configured hosts and from nowhere else."""

import asyncio
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final

from pydantic_core import from_json

from services.mailings.domain import InvalidPostingError
from shared.http.client import Client, RequestFailedError, ResponseTooLargeError
from shared.http.guard import ForbiddenTargetError, Guard, Target, parse_target

# Operators name these hosts: they may stand anywhere.
ANYWHERE: Final = Guard((IPv4Network("0.0.0.0/0"), IPv6Network("::/0")))
# Bytes and seconds of an answer: a page of 500 users has some 200 kB.
LARGEST: Final = 8 << 20
PATIENCE: Final = 30.0
# URLs of one variable, and characters of all that is fetched for one posting: it is kept in memory
# and rendered into every message.
MOST_URLS: Final = 100
LARGEST_CONTEXT: Final = 1 << 20
# Answers in memory at a time, by one process.
AT_ONCE: Final = 8

_HEADERS: Final = {"Accept": "application/json"}
_PORTS: Final = {"http": 80, "https": 443}


class SourceError(Exception):
    """No usable answer came; a later try may bring one. The text names the host, no path."""


class Sources:
    """The configured hosts; `places` says by host where else to ask, '' being the host itself.

    A host that is configured without a port, and not to be found elsewhere, may be asked on any.
    """

    def __init__(self, client: Client, places: Mapping[str, str]) -> None:
        self._client = client
        self._places = places
        self._at_once = asyncio.Semaphore(AT_ONCE)

    async def json(self, url: str) -> Any:
        """The JSON at a URL.

        Raises:
            InvalidPostingError: the host is not configured, or refuses for good.
            SourceError: time-outs, broken connections, 429, 5xx, broken JSON.
        """
        host, target = self._found(url)
        async with self._at_once:
            try:
                reply = await self._client.fetch(target, _HEADERS, most=LARGEST, timeout=PATIENCE)
            except RequestFailedError as error:
                raise SourceError(f"{host}: {error}") from None
            except (ResponseTooLargeError, ForbiddenTargetError) as error:
                raise InvalidPostingError(f"{host}: {error}") from None
            if reply.status in (408, 425, 429) or reply.status >= 500:  # noqa: PLR2004
                raise SourceError(f"{host} answered {reply.status}")
            if not 200 <= reply.status < 300:  # noqa: PLR2004
                raise InvalidPostingError(f"{host} answered {reply.status}")
            try:
                return from_json(reply.body, allow_inf_nan=False, cache_strings="keys")
            except ValueError as error:
                raise SourceError(f"{host}: broken JSON: {error}") from None

    async def context(self, context: Mapping[str, Any], fetch: Iterable[str]) -> dict[str, Any]:
        """The data at the URLs that the variables named in `fetch` hold: one, or a list of them.

        Raises:
            as `json`; InvalidPostingError also where a value is no URL.
        """
        fetched: dict[str, Any] = {}
        for name in fetch:
            match context.get(name):
                case None:
                    continue  # the template will say so
                case str(url):
                    fetched[name] = _items(await self._about(name, url))
                case [*urls] if all(isinstance(url, str) for url in urls):
                    if len(urls) > MOST_URLS:
                        raise InvalidPostingError(
                            f"template_context.{name}: more than {MOST_URLS} URLs"
                        )
                    found = [_items(await self._about(name, url)) for url in urls]
                    fetched[name] = [one for each in found for one in _listed(each)]
                case _:
                    raise InvalidPostingError(
                        f"template_context.{name}: must be a URL or a list of URLs"
                    )
        return fetched

    async def _about(self, name: str, url: str) -> Any:
        try:
            return await self.json(url)
        except InvalidPostingError as error:
            raise InvalidPostingError(f"template_context.{name}: {error}") from None

    def _found(self, url: str) -> tuple[str, Target]:
        """The host that a URL names, and where to ask instead of it."""
        try:
            named = parse_target(url)
            plain = named.port == _PORTS[named.url.scheme]
            bracketed = f"[{named.host}]" if ":" in named.host else named.host
            host = bracketed if plain else f"{bracketed}:{named.port}"
            place = self._places.get(host)
            if place is None and self._places.get(bracketed) != "":
                raise InvalidPostingError(f"host {host} is not among RINGBACK_SOURCES")
            return host, parse_target(f"{place}{named.url.raw_path_qs}") if place else named
        except ForbiddenTargetError as error:
            raise InvalidPostingError(str(error)) from None


def _items(value: Any) -> Any:
    """The items of a page; any other value is what it is."""
    if isinstance(value, dict) and isinstance(value.get("results"), list):
        return value["results"]
    return value


def _listed(value: Any) -> list[Any]:
    """What one of several URLs adds to the list."""
    return value if isinstance(value, list) else [value]
