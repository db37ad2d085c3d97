"""The console in this process, on a real database, and browsers that use it over HTTP."""

import asyncio
import html
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from http.cookies import SimpleCookie
from typing import Any, Final

import aiohttp
from aiohttp import web
from yarl import URL

from services.console.app import SCHEMA, application, listen
from services.console.security import SESSION_COOKIE
from services.console.sign_in.pages import RoleClaim, SignIn
from services.console.sign_in.provider import Provider
from services.console.sign_in.roles import Role
from services.console.sign_in.sessions import Sessions, User
from services.sandbox.settings import OIDC_CLIENT_ID, OIDC_PATH, SandboxSettings
from shared.amqp.publisher import Publisher
from shared.amqp.rpc_client import RpcClient
from shared.http.server import AppRunner
from shared.http.service_client import ServiceClient
from shared.postgres.migrations import migrate
from shared.postgres.pool import Database
from shared.process.health import Health
from shared.topology import EVENTS, topology
from tests.fakes.sandbox import Sandbox

NO_BROKER: Final = "amqp://127.0.0.1:1/"
NOBODY: Final = "http://127.0.0.1:1/oidc"
SECRET: Final = SandboxSettings().oidc_secret.get_secret_value()


@dataclass(frozen=True)
class Shown:
    """What a browser got: the response after all redirects, if it follows them."""

    status: int
    url: URL
    headers: Mapping[str, str]
    text: str

    @property
    def heading(self) -> str:
        """Return the text of the heading of the page."""
        found = re.search(r"<h1>(.*?)</h1>", self.text, re.DOTALL)
        assert found, self.text
        return html.unescape(found[1]).strip()

    @property
    def csrf(self) -> str:
        """Return the token of the forms of the page."""
        found = re.search(r'name="csrf" value="([0-9a-f]+)"', self.text)
        assert found, self.text
        return found[1]

    @property
    def location(self) -> URL:
        """Return the URL of a redirect."""
        return URL(self.headers["Location"])


class Browser:
    """One browser with its own cookies. Like real ones, it sends `Origin` with forms."""

    def __init__(self, origin: str, http: aiohttp.ClientSession) -> None:
        self.origin = origin
        self.http = http

    async def get(
        self, path: str | URL, *, follow: bool = True, headers: Mapping[str, str] | None = None
    ) -> Shown:
        """Open a page."""
        return await self._request("GET", path, follow=follow, headers=headers or {})

    async def post(
        self,
        path: str,
        form: Mapping[str, Any] | None = None,
        *,
        csrf: str | None = None,
        follow: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> Shown:
        """Send a form with the token of this session, unless another one is given."""
        if csrf is None:
            csrf = (await self.get("/")).csrf
        data = {"csrf": csrf, **(form or {})}
        sent = {"Origin": self.origin, **(headers or {})}
        return await self._request("POST", path, follow=follow, headers=sent, data=data)

    def plant(self, name: str, value: str) -> None:
        """Add a cookie of the console."""
        cookie = SimpleCookie(f"{name}={value}; Path=/; Secure")
        self.http.cookie_jar.update_cookies(cookie, URL(self.origin))

    async def sign_in(self, person: str, path: str = "/") -> Shown:
        """Open a page, and sign in at the sandbox as this person on the way."""
        choice = await self.get(path)
        found = re.search(rf"href='([^']*as={person}[^']*)'", choice.text)
        assert found, choice.text
        return await self.get(choice.url.join(URL(html.unescape(found[1]), encoded=True)))

    async def _request(
        self, method: str, path: str | URL, *, follow: bool, headers: Mapping[str, str], **more: Any
    ) -> Shown:
        url = path if isinstance(path, URL) else self.origin + path
        async with self.http.request(
            method, url, allow_redirects=follow, headers=headers, **more
        ) as response:
            text = await response.text(errors="replace")
            return Shown(response.status, response.url, response.headers.copy(), text)


class Console:
    """A running console."""

    def __init__(self, origin: str, sessions: Sessions, database: Database) -> None:
        self.origin = origin
        self.sessions = sessions
        self.database = database

    @asynccontextmanager
    async def browser(self, role: Role | None = None) -> AsyncIterator[Browser]:
        """Yield a new browser, signed in with this role without the way to the provider."""
        jar = aiohttp.CookieJar(unsafe=True, treat_as_secure_origin=self.origin)
        async with aiohttp.ClientSession(cookie_jar=jar) as http:
            browser = Browser(self.origin, http)
            if role is not None:
                user = User("test", f"test-{role}", f"{role}@example.com", f"The {role}")
                browser.plant(SESSION_COOKIE, await self.sessions.start(user, role))
            yield browser


@asynccontextmanager
async def running_console(  # noqa: PLR0913 - the settings of the console
    database_url: str,
    *,
    issuer: str = NOBODY,
    amqp_url: str | None = None,
    client_id: str = OIDC_CLIENT_ID,
    secret: str | None = SECRET,
    roles: RoleClaim | None = None,
    idle: float = 3600.0,
    lifetime: float = 43_200.0,
    address_header: str | None = None,
) -> AsyncIterator[Console]:
    """Run a console for the length of the block.

    Without `amqp_url` no other service can be reached. Without `issuer` nobody can sign in.
    """
    health = Health()
    await migrate(database_url, SCHEMA)
    database = Database(database_url, name="console", health=health, schema=SCHEMA)
    rpc_client = RpcClient(amqp_url or NO_BROKER, name="console", health=health)
    publisher = Publisher(
        amqp_url or NO_BROKER,
        name="console events",
        topology=topology().only((EVENTS,)),
        health=health,
    )
    sessions = Sessions(database, idle=idle, lifetime=lifetime)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        )
        provider = Provider(
            http, issuer=issuer, discovery_url=None, client_id=client_id, client_secret=secret
        )
        sign_in = SignIn(
            provider, sessions, roles or RoleClaim("roles", {}), address_header=address_header
        )
        listening = listen("127.0.0.1", 0)
        origin = f"http://127.0.0.1:{listening.getsockname()[1]}"
        services = ServiceClient(rpc_client, timeout=5)
        runner = AppRunner(
            application(services, publisher, sessions, sign_in, origin=origin),
            access_log=None,
            shutdown_timeout=0.2,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.SockSite(runner, listening).start()
        tasks = [asyncio.create_task(database.run())]
        if amqp_url:
            tasks.append(asyncio.create_task(rpc_client.run()))
            tasks.append(asyncio.create_task(publisher.run()))
        stack.push_async_callback(_cancel, tasks)
        await database.ready()
        if amqp_url:
            await rpc_client.ready()
            await publisher.ready()
        yield Console(origin, sessions, database)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def issuer_of(sandbox: Sandbox) -> str:
    """Return the issuer of the sandbox's OpenID provider."""
    return f"{sandbox.url.origin()}{OIDC_PATH}"
