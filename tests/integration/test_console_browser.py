"""The base of the console in a real browser: sign-in, forms, keyboard, phone, dark mode."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from services.console.sign_in.roles import Role
from services.console.sign_in.sessions import User
from tests.fakes.chromium import HOSTILE, Window, another, chromium, plant, window
from tests.fakes.console import Console, issuer_of, running_console
from tests.fakes.sandbox import running_sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def console(database_url: str, browser: Browser) -> AsyncIterator[Console]:
    """Run a console whose users sign in at a sandbox. No other service runs."""
    assert browser
    async with (
        running_sandbox() as sandbox,
        running_console(database_url, issuer=issuer_of(sandbox)) as console,
    ):
        yield console


async def session_of(console: Console, role: Role = Role.ADMIN, name: str = "Ada") -> str:
    """Return the cookie of a new session."""
    user = User("test", f"test-{role}", f"{role}@example.com", name)
    return await console.sessions.start(user, role)


@asynccontextmanager
async def signed_in(
    console: Console, browser: Browser, role: Role = Role.ADMIN, name: str = "Ada"
) -> AsyncIterator[Window]:
    async with window(
        browser, console.origin, session=await session_of(console, role, name)
    ) as opened:
        yield opened


async def test_m11_a_person_signs_in_with_one_click_and_out_again(
    console: Console, browser: Browser
) -> None:
    async with window(browser, console.origin) as opened:
        await opened.sign_in("Omar", "/?client=shop")
        assert opened.page.url == f"{console.origin}/?client=shop"
        await opened.page.get_by_role("button", name="Omar").click()
        assert await opened.page.get_by_text("omar, operator").is_visible()
        await opened.check()

        await opened.press("Sign out")
        assert await opened.heading() == "Signed out"
        await opened.check()

        await opened.page.go_back()
        await opened.page.reload()
        assert await opened.page.get_by_text("Sign in as Omar").is_visible()


async def test_m11_without_scripts_one_signs_in_selects_a_client_and_signs_out(
    console: Console, browser: Browser
) -> None:
    async with window(browser, console.origin, java_script_enabled=False) as opened:
        await opened.sign_in("Vera")
        await opened.page.get_by_role("textbox", name="Client").fill("shop")
        await opened.press("Select")
        assert opened.page.url == f"{console.origin}/?client=shop"
        await opened.page.get_by_role("button", name="Vera").click()
        await opened.press("Sign out")
        assert await opened.heading() == "Signed out"


async def test_every_kind_of_error_page_is_accessible(console: Console, browser: Browser) -> None:
    async with signed_in(console, browser) as opened:
        for path, status, heading in (
            ("/nothing", 404, "Not found"),
            ("/sign-out", 405, "This address is for another method"),
            ("/?client=ringback.x", 422, "Some fields are not valid"),
            ("/sign-in/callback", 400, "This sign-in is not known"),
        ):
            assert await opened.open(path) == status
            assert await opened.heading() == heading
            await opened.check()


async def test_the_keyboard_reaches_content_client_and_menu(
    console: Console, browser: Browser
) -> None:
    async with signed_in(console, browser) as opened:
        await opened.open("/")
        press = opened.page.keyboard.press
        await press("Tab")
        focused = opened.page.locator(":focus")
        assert await focused.inner_text() == "Skip to the content"
        await press("Enter")
        assert await opened.page.evaluate("document.activeElement.id") == "main"

        await opened.open("/")
        await opened.page.get_by_role("textbox", name="Client").focus()
        await opened.page.keyboard.type("shop")
        async with opened.page.expect_navigation():
            await press("Enter")
        assert opened.page.url == f"{console.origin}/?client=shop"

        user = opened.page.get_by_role("button", name="Ada")
        await user.focus()
        await press("Enter")
        sign_out = opened.page.get_by_role("button", name="Sign out")
        assert await sign_out.is_visible()
        await press("Tab")
        assert await sign_out.evaluate("each => each === document.activeElement")
        await press("Escape")
        assert not await sign_out.is_visible()


async def test_on_a_phone_the_menu_opens_and_leads_to_a_page(
    console: Console, browser: Browser
) -> None:
    async with signed_in(console, browser) as opened:
        await opened.page.set_viewport_size({"width": 360, "height": 740})
        await opened.open("/?client=shop")
        link = opened.page.get_by_role("navigation", name="Pages").get_by_role("link").first
        assert not await link.is_visible()
        await opened.page.get_by_role("button", name="Menu").click()
        assert await link.is_visible()
        async with opened.page.expect_navigation():
            await link.click()
        assert opened.page.url == f"{console.origin}/?client=shop"


@pytest.mark.parametrize("place", ["client", "name", "path"])
async def test_m11_markup_of_others_runs_no_script(
    console: Console, browser: Browser, place: str
) -> None:
    name = HOSTILE if place == "name" else "Ada"
    async with signed_in(console, browser, name=name) as opened:
        await opened.open("/")
        if place == "client":
            await opened.page.get_by_role("textbox", name="Client").fill(HOSTILE[:200])
            await opened.press("Select")
        elif place == "path":
            await opened.page.goto(f"{console.origin}/{HOSTILE}")
        await opened.check()


async def test_m11_a_session_that_ends_before_a_form_is_sent_has_a_clear_page(
    console: Console, browser: Browser
) -> None:
    cookie = await session_of(console)
    async with window(browser, console.origin, session=cookie) as opened:
        await opened.open("/")
        await console.sessions.end(cookie)
        await opened.page.get_by_role("button", name="Ada").click()
        await opened.press("Sign out")
        assert await opened.heading() == "Your session has ended"
        await opened.check()
        # After a new sign-in the form has another token, and works.
        await plant(opened.page.context, console.origin, await session_of(console))
        await opened.open("/")
        await opened.page.get_by_role("button", name="Ada").click()
        await opened.press("Sign out")
        assert await opened.heading() == "Signed out"


async def test_m11_a_sign_out_ends_all_windows(console: Console, browser: Browser) -> None:
    async with signed_in(console, browser) as opened:
        await opened.open("/")
        other = await another(opened.page.context, console.origin)
        await other.open("/")
        await opened.page.get_by_role("button", name="Ada").click()
        await opened.press("Sign out")

        await other.page.reload()
        assert await other.page.get_by_text("Sign in as Ada").is_visible()


async def test_times_are_in_the_zone_of_the_browser(console: Console, browser: Browser) -> None:
    async with signed_in(console, browser) as opened:
        await opened.page.context.clear_cookies(name="ringback-timezone")
        await opened.open("/")
        await opened.open("/")
        footer = opened.page.get_by_text("Times are in Europe/Berlin")
        assert await footer.is_visible()
