"""The console in a real browser: sign-in, forms, actions, keyboard, phone, dark mode."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from services.console.sign_in.roles import Role
from services.console.sign_in.sessions import User
from tests.fakes.chromium import HOSTILE, Window, another, chromium, plant, window
from tests.fakes.console import Console, issuer_of, running_console
from tests.fakes.sandbox import running_sandbox
from tests.fakes.system import System

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def console(
    shared_database_url: str, shared_amqp_url: str, services: System, browser: Browser
) -> AsyncIterator[Console]:
    """Run a console in front of all services, whose users sign in at a sandbox."""
    assert browser
    assert services
    async with (
        running_sandbox() as sandbox,
        running_console(
            shared_database_url, issuer=issuer_of(sandbox), amqp_url=shared_amqp_url
        ) as console,
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


async def confirm(opened: Window, button: str, submit: str) -> str:
    """Press a button that asks first, confirm, and return the question."""
    await opened.page.get_by_role("button", name=f"{button} …", exact=True).click()
    dialog = opened.page.locator("dialog[open]")
    question: str = await dialog.inner_text()
    async with opened.page.expect_navigation():
        await dialog.get_by_role("button", name=submit, exact=True).click()
    return question


async def fill(opened: Window, **fields: str) -> None:
    """Fill fields of a form by their names."""
    for name, value in fields.items():
        await opened.page.locator(f"#field-{name}").fill(value)


async def actions(opened: Window, client: str) -> list[str]:
    """Return the actions in the audit log for a client, the first one first."""
    await opened.open(f"/audit?client={client}")
    rows = opened.page.locator("main tbody tr")
    found: list[str] = await rows.locator("td:nth-of-type(2)").all_inner_texts()
    return found[::-1]


async def test_m10_a_client_gets_a_mailing_that_is_started_paused_and_cancelled(
    console: Console, browser: Browser
) -> None:
    client = "browser-mailings"
    async with signed_in(console, browser, Role.OPERATOR) as opened:
        await opened.open(f"/clients/new?client={client}")
        await fill(opened, phone="79160000001", tag="vip", timezone="Nowhere")
        await opened.press("Save")
        assert await opened.page.get_by_role("alert").is_visible()
        await opened.check()
        await fill(opened, timezone="UTC")
        await opened.press("Save")
        assert await opened.heading() == "Client 79160000001"

        await opened.open(f"/mailings/new?client={client}")
        # The hours are closed now, so nothing is sent.
        hour = datetime.now(UTC).hour
        hours = {"opens": f"{(hour + 4) % 24:02}:00", "closes": f"{(hour + 5) % 24:02}:00"}
        await fill(opened, text="Hello {{ user.tag }}", tags="vip", **hours)
        await opened.press("Preview")
        assert await opened.page.get_by_text("Hello vip").is_visible()
        await opened.press("Save as a draft")
        assert "draft" in await opened.heading()
        assert "At present, 1 client match." in await confirm(opened, "Start", "Start")
        for button, submit, status in (
            ("Pause", "Pause", "paused"),
            ("Resume", "Resume", "running"),
            ("Cancel", "Cancel the mailing", "cancelled"),
            ("Delete", "Delete", None),
        ):
            await confirm(opened, button, submit)
            assert await opened.page.get_by_role("status").first.is_visible()
            assert (status or "Mailings") in await opened.heading()
        assert await actions(opened, client) == [
            *("client.create", "mailing.create", "mailing.start", "mailing.pause"),
            *("mailing.resume", "mailing.cancel", "mailing.delete"),
        ]


async def test_n1_an_endpoint_gets_messages_and_its_secret_is_rotated(
    console: Console, browser: Browser
) -> None:
    client = "browser-endpoints"
    async with signed_in(console, browser, Role.OPERATOR) as opened:
        await opened.open(f"/endpoints/new?client={client}")
        await fill(opened, url="https://customer.example.com/hooks", event_types="invoice.*")
        await opened.press("Save")
        secret = await opened.page.locator("#secret").inner_text()
        assert secret.startswith("whsec_")
        # Back and forward do not create another one, nor show the secret again.
        await opened.page.get_by_role("link", name="Go to the endpoint").click()
        await opened.page.get_by_role("heading", name="Endpoint").wait_for()
        assert secret not in await opened.page.content()
        path = opened.page.url.removeprefix(console.origin)
        await opened.press("Send a test")
        assert await opened.page.get_by_text("A test message is sent.").is_visible()
        assert "wait until it is resumed" in await confirm(opened, "Pause", "Pause")
        assert "paused" in await opened.heading()

        await opened.open(f"/messages/new?client={client}")
        await fill(opened, event_type="invoice.paid", id="browser-7", payload='{"total": 12}')
        await opened.press("Send")
        assert await opened.page.get_by_text("stored for 1 endpoint").is_visible()
        await opened.check()

        await opened.open(path)
        assert await opened.page.get_by_role("link", name="browser-7").is_visible()
        await opened.press("Resume")
        assert "active" in await opened.heading()
        await confirm(opened, "Rotate the secret", "Rotate")
        assert await opened.page.locator("#secret").inner_text() != secret
        await opened.open(path)
        await confirm(opened, "Delete", "Delete")
        assert await opened.heading() == "Endpoints"
        assert await actions(opened, client) == [
            *("endpoint.create", "endpoint.test", "endpoint.pause", "message.send"),
            *("endpoint.resume", "endpoint.rotate secret", "endpoint.delete"),
        ]


async def test_e5_a_posting_is_created_after_its_faults_are_corrected(
    console: Console, browser: Browser
) -> None:
    client = "browser-postings"
    async with signed_in(console, browser, Role.OPERATOR) as opened:
        await opened.open(f"/postings/new?client={client}&template=email/welcome.md")
        await fill(opened, receivers="http://127.0.0.1:1/users", template_context="{")
        await opened.page.get_by_label("email", exact=True).check()
        await opened.press("Send")
        await opened.page.get_by_role("link", name="template context").click()
        assert await opened.page.evaluate("document.activeElement.id") == "field-template_context"
        await opened.check()
        await fill(opened, template_context='{"username": "vera"}')
        await opened.press("Send")
        assert await opened.page.get_by_text("The posting is accepted.").is_visible()
        assert await actions(opened, client) == ["posting.create"]


async def test_s7_the_schedule_page_has_its_charts_and_is_accessible(
    console: Console, browser: Browser
) -> None:
    client = "browser-schedule"
    async with signed_in(console, browser, Role.OPERATOR) as opened:
        await opened.open(f"/schedule?client={client}")
        await opened.check()
        await opened.open(f"/callbacks/new?client={client}")
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        await fill(
            opened,
            url="https://customer.example.com/hooks",
            run_at=tomorrow.strftime("%Y-%m-%dT%H:%M"),
            cron="0 6 * * *",
            timezone="Europe/Berlin",
        )
        await opened.press("Schedule")
        assert await opened.page.locator("ol li time").count() >= 20
        await opened.open(f"/schedule?client={client}")
        assert await opened.page.locator("figure.chart").count() == 2
        await opened.check()
