"""M11: one session or address cannot use up the console, its provider or the journal."""

import contextlib

import pytest
from yarl import URL

from services.console import feeds
from services.console.sign_in import pages as sign_in_pages
from services.console.sign_in.roles import Role
from tests.fakes.console import Browser, Shown, issuer_of, running_console
from tests.fakes.sandbox import running_sandbox


async def test_a15_a_session_has_a_limited_number_of_live_parts(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "MAX_STREAMS", 2)
    async with (
        running_console(database_url) as console,
        console.browser(Role.VIEWER) as browser,
        console.browser(Role.VIEWER) as other,
        contextlib.AsyncExitStack() as stack,
    ):
        live = f"{browser.origin}/live/overview"
        first = await stack.enter_async_context(browser.http.get(live))
        second = await stack.enter_async_context(browser.http.get(f"{live}?minutes=60"))
        assert (first.status, second.status) == (200, 200)
        assert (await browser.get("/live/tail")).status == 429
        others = await stack.enter_async_context(other.http.get(live))
        assert others.status == 200


async def refused_sign_in(browser: Browser, issuer: str, **headers: str) -> Shown:
    """Come back from the provider with a code that it refuses."""
    started = await browser.get("/sign-in", follow=False)
    returned = {"code": "made-up", "state": started.location.query["state"], "iss": issuer}
    return await browser.get(
        str(URL("/sign-in/callback").with_query(returned)),
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


async def test_a16_an_address_has_a_limited_number_of_sign_ins(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each one with a code of its own is a request to the provider."""
    monkeypatch.setattr(sign_in_pages, "MAX_SIGN_INS", 3)
    async with (
        running_sandbox() as sandbox,
        running_console(database_url, issuer=issuer_of(sandbox)) as console,
        console.browser() as browser,
    ):
        statuses = []
        for number in range(4):
            # Clients could choose this header, so it does not count.
            address = f"203.0.113.{number}"
            shown = await refused_sign_in(browser, issuer_of(sandbox), X_Forwarded_For=address)
            statuses.append(shown.status)
        assert statuses == [400, 400, 400, 429]
        assert shown.heading == "Too many sign-ins from this address"
        assert shown.headers["Retry-After"]
        # Without an attempt of this browser, nothing is sent to the provider, or counted.
        assert (await browser.get("/sign-in/callback?code=made-up&state=x")).status == 400


async def test_a16_behind_a_proxy_each_address_has_its_own_limit(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sign_in_pages, "MAX_SIGN_INS", 2)
    async with (
        running_sandbox() as sandbox,
        running_console(
            database_url, issuer=issuer_of(sandbox), address_header="X-Forwarded-For"
        ) as console,
        console.browser() as browser,
    ):
        statuses = []
        # Only the last entry counts. The others are from the client.
        for address in ("198.51.100.7",) * 3 + ("1.1.1.1, 198.51.100.7", "203.0.113.9"):
            shown = await refused_sign_in(browser, issuer_of(sandbox), X_Forwarded_For=address)
            statuses.append(shown.status)
        assert statuses == [400, 400, 429, 429, 400]
