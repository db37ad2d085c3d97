"""M11: one session or address cannot use up the console, its provider or the journal."""

import contextlib

import pytest
from yarl import URL

from services.console import feeds
from services.console.sign_in import pages as sign_in_pages
from services.console.sign_in.roles import Role
from tests.fakes.console import issuer_of, running_console
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
        for _ in range(4):
            started = await browser.get("/sign-in", follow=False)
            state = started.location.query["state"]
            returned = {"code": "made-up", "state": state, "iss": issuer_of(sandbox)}
            shown = await browser.get(str(URL("/sign-in/callback").with_query(returned)))
            statuses.append(shown.status)
        assert statuses == [400, 400, 400, 429]
        assert shown.heading == "Too many sign-ins from this address"
        assert shown.headers["Retry-After"]
        # Without an attempt of this browser, nothing is sent to the provider, or counted.
        assert (await browser.get("/sign-in/callback?code=made-up&state=x")).status == 400
