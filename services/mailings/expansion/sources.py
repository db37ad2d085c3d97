"""Fetches user lists and template data from the configured hosts only."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final
from urllib.parse import urljoin

from pydantic_core import from_json

from services.mailings.domain import InvalidPostingError
from shared.contracts.context import json_text
from shared.http.client import Client, RequestFailedError, ResponseTooLargeError
from shared.http.guard import ForbiddenTargetError, Guard, Target, parse_target

# Operators configure these hosts, so every address is allowed.
ANYWHERE: Final = Guard((IPv4Network("0.0.0.0/0"), IPv6Network("::/0")))
# Bytes of a response: a page of 500 users has about 200 kB.
MAX_RESPONSE_SIZE: Final = 8 << 20
# Seconds for a response.
RESPONSE_TIMEOUT: Final = 30.0
# Requests for the data of one posting.
MAX_DATA_REQUESTS: Final = 2_000
# Characters of all data fetched for one posting, which is kept in memory.
MAX_FETCHED_DATA: Final = 1 << 20
# Large responses in memory at a time, in one process.
MAX_CONCURRENT_FETCHES: Final = 8
# Bytes of a response with a single user, who has about 400.
MAX_SMALL_RESPONSE: Final = 16_384
# Requests for small responses to one host at a time.
MAX_SMALL_FETCHES: Final = 32

_HEADERS: Final = {"Accept": "application/json"}
_PORTS: Final = {"http": 80, "https": 443}


class SourceError(Exception):
    """A source is not available now. The text names the host, without the path."""


class LargeResponseError(InvalidPostingError):
    """A response has too many bytes."""


class Sources:
    """Fetches JSON from the configured hosts.

    hosts: for each host, the URL to use instead of it, or '' for the host itself. A host without
        a port and without such a URL may be used on any port.
    credentials: for each host, with its port unless it is the default one, the `Authorization`
        header of requests to it.
    """

    def __init__(
        self, client: Client, hosts: Mapping[str, str], credentials: Mapping[str, str]
    ) -> None:
        self._client = client
        self._hosts = hosts
        self._headers = {
            host: {**_HEADERS, "Authorization": value} for host, value in credentials.items()
        }
        self._limit = asyncio.Semaphore(MAX_CONCURRENT_FETCHES)
        self._small_limits: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(MAX_SMALL_FETCHES)
        )

    async def json(self, url: str) -> Any:
        """Return the JSON at a URL.

        Raises:
            InvalidPostingError: the host is not configured, or refuses the request for good.
            SourceError: timeout, broken connection, 408, 425, 429, 5xx, invalid JSON.
        """
        host, target = self._resolve(url)
        return await self._fetch_json(host, target, self._limit, MAX_RESPONSE_SIZE)

    async def small_json(self, url: str) -> Any:
        """Return the JSON at a URL, which is small. More requests than by `json` are in flight.

        Raises:
            LargeResponseError: it has more than MAX_SMALL_RESPONSE bytes.
            InvalidPostingError, SourceError: as `json`.
        """
        host, target = self._resolve(url)
        limit = self._small_limits[target.origin]
        return await self._fetch_json(host, target, limit, MAX_SMALL_RESPONSE)

    async def _fetch_json(
        self, host: str, target: Target, limit: asyncio.Semaphore, max_bytes: int
    ) -> Any:
        async with limit:
            try:
                response = await self._client.fetch(
                    target,
                    self._headers.get(host, _HEADERS),
                    max_bytes=max_bytes,
                    timeout=RESPONSE_TIMEOUT,
                )
            except RequestFailedError as error:
                raise SourceError(f"{host}: {error}") from None
            except ResponseTooLargeError as error:
                raise LargeResponseError(f"{host}: {error}") from None
            except ForbiddenTargetError as error:
                raise InvalidPostingError(f"{host}: {error}") from None
            if response.status in (408, 425, 429) or response.status >= 500:  # noqa: PLR2004
                raise SourceError(f"{host} responded with {response.status}")
            if not 200 <= response.status < 300:  # noqa: PLR2004
                raise InvalidPostingError(f"{host} responded with {response.status}")
            try:
                return from_json(response.body, allow_inf_nan=False, cache_strings="keys")
            except ValueError as error:
                raise SourceError(f"{host}: invalid JSON: {error}") from None

    def follow(self, url: str, link: str) -> str:
        """Return the URL of a link in the response of a URL.

        A host with a replacement knows itself by its replacement, so its links contain that.

        Raises:
            InvalidPostingError: the host is not configured.
        """
        host, _ = self._resolve(url)
        replacement = self._hosts.get(host)
        if replacement and link.startswith(f"{replacement}/"):
            link = link.removeprefix(replacement)
        return urljoin(url, link)

    async def fetch_data(self, context: Mapping[str, Any], fetch: Iterable[str]) -> dict[str, Any]:
        """Return the data at the URLs in the variables that `fetch` names.

        A variable has one URL or a list of URLs. All pages of a list are fetched.

        Raises:
            InvalidPostingError, SourceError: as `json`; also if a value is not a URL, or if there
                is too much data.
        """
        fetched: dict[str, Any] = {}
        quota = _Quota()
        for name in fetch:
            match context.get(name):
                case None:
                    continue  # the template reports the missing variable
                case str(url):
                    fetched[name] = await self._fetch(name, url, quota)
                case [*urls] if all(isinstance(url, str) for url in urls):
                    fetched[name] = []
                    for start in range(0, len(urls), MAX_CONCURRENT_FETCHES):
                        some = urls[start : start + MAX_CONCURRENT_FETCHES]
                        for data in await self._fetch_all(name, some, quota):
                            fetched[name] += _as_list(data)
                case _:
                    raise InvalidPostingError(
                        f"template_context.{name}: must be a URL or a list of URLs"
                    )
        return fetched

    async def _fetch_all(self, name: str, urls: Iterable[str], quota: "_Quota") -> list[Any]:
        """Return the values at several URLs. After an error, no request goes on."""
        fetching = [asyncio.create_task(self._fetch(name, url, quota)) for url in urls]
        try:
            return await asyncio.gather(*fetching)
        finally:
            for task in fetching:
                task.cancel()

    async def _fetch(self, name: str, url: str, quota: "_Quota") -> Any:
        """Return the value at a URL, or the items of all pages of a list."""
        items: list[Any] = []
        next_url: str | None = url
        try:
            while next_url is not None:
                quota.count_request()
                value = await self.json(next_url)
                quota.count_data(value)
                if not (isinstance(value, dict) and isinstance(value.get("results"), list)):
                    return value
                items += value["results"]
                link = value.get("next")
                next_url = self.follow(next_url, link) if isinstance(link, str) and link else None
        except InvalidPostingError as error:
            raise InvalidPostingError(f"template_context.{name}: {error}") from None
        return items

    def _resolve(self, url: str) -> tuple[str, Target]:
        """Return the host in a URL, and the target to request."""
        try:
            named = parse_target(url)
            is_default_port = named.port == _PORTS[named.url.scheme]
            bracketed = f"[{named.host}]" if ":" in named.host else named.host
            host = bracketed if is_default_port else f"{bracketed}:{named.port}"
            replacement = self._hosts.get(host)
            if replacement is None and self._hosts.get(bracketed) != "":
                raise InvalidPostingError(f"host {host} is not in RINGBACK_SOURCES")
            url = f"{replacement}{named.url.raw_path_qs}" if replacement else url
            return host, parse_target(url)
        except ForbiddenTargetError as error:
            raise InvalidPostingError(str(error)) from None


class _Quota:
    """Limits the data of one posting."""

    def __init__(self) -> None:
        self._requests = 0
        self._size = 0

    def count_request(self) -> None:
        self._requests += 1
        if self._requests > MAX_DATA_REQUESTS:
            raise InvalidPostingError(f"the data needs more than {MAX_DATA_REQUESTS} requests")

    def count_data(self, value: Any) -> None:
        try:
            self._size += len(json_text(value))
        except ValueError:
            raise InvalidPostingError(
                "the data contains a number that JSON cannot represent"
            ) from None
        if self._size > MAX_FETCHED_DATA:
            raise InvalidPostingError(f"the data is larger than {MAX_FETCHED_DATA} characters")


def _as_list(value: Any) -> list[Any]:
    """Return the items that one of several URLs adds to the list."""
    return value if isinstance(value, list) else [value]
