"""M11: sign-in at an OpenID provider that others have written (oidc-provider-mock)."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from yarl import URL

from services.console.sign_in.pages import RoleClaim
from tests.fakes.console import Browser, Shown, running_console
from tests.fakes.waiting import until


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run the provider in a process of its own, and return its issuer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("provider") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "oidc_provider_mock", "--port", str(port)],
            env={"PATH": os.environ["PATH"]},
            stdout=output,
            stderr=output,
        )
    issuer = f"http://127.0.0.1:{port}"
    try:
        asyncio.run(until(lambda: _responds(issuer, process), 60))
        yield issuer
    finally:
        process.kill()
        process.wait()


async def _responds(issuer: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None
    try:
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"{issuer}/.well-known/openid-configuration") as response,
        ):
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def sign_in(browser: Browser, issuer: str, subject: str, **claims: Any) -> Shown:
    """Give a user these claims, sign in as this user, and return the page that follows."""
    async with browser.http.put(f"{issuer}/users/{subject}", json=claims) as response:
        assert response.status == 204, await response.text()
    at_provider = (await browser.get("/sign-in", follow=False)).location
    async with browser.http.post(
        at_provider, data={"sub": subject}, allow_redirects=False
    ) as response:
        assert response.status == 302, await response.text()
        callback = URL(response.headers["Location"], encoded=True)
    return await browser.get(callback)


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        ({"roles": ["operator", "other"], "name": "Olga"}, "operator"),
        ({"roles": "viewer", "email": "vic@example.com"}, "viewer"),
    ],
)
async def test_m11_a_foreign_provider_signs_users_in(
    database_url: str, issuer: str, claims: dict[str, Any], role: str
) -> None:
    async with (
        running_console(database_url, issuer=issuer, client_id="shop", secret="s") as console,
        console.browser() as browser,
    ):
        shown = await sign_in(browser, issuer, "olga", **claims)
        assert shown.status == 200, shown.text
        assert f", {role}</span>" in shown.text
        assert claims.get("name", "vic@example.com") in shown.text


async def test_m11_the_groups_of_a_foreign_provider_become_roles(
    database_url: str, issuer: str
) -> None:
    roles = RoleClaim("groups", {"ops/admins": "admin"})
    async with (
        running_console(database_url, issuer=issuer, roles=roles) as console,
        console.browser() as browser,
    ):
        shown = await sign_in(browser, issuer, "ada", groups=["ops/admins"])
        assert ", admin</span>" in shown.text
        browser.http.cookie_jar.clear()
        shown = await sign_in(browser, issuer, "eve", groups=["sales"])
        assert (shown.status, shown.heading) == (403, "You have no role in the console")


async def test_m11_a_client_that_the_provider_refuses_gets_a_page_for_administrators(
    database_url: str, issuer: str
) -> None:
    """The provider requires a secret, but the console has none."""
    async with (
        running_console(database_url, issuer=issuer, secret=None) as console,
        console.browser() as browser,
    ):
        shown = await sign_in(browser, issuer, "vera", roles="viewer")
        assert shown.status == 502
        assert "invalid_client" in shown.text
