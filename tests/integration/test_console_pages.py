"""The base of all pages of the console: roles, forms, errors, headers, the selected client."""

import re
from collections.abc import AsyncIterator
from http import HTTPStatus

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from yarl import URL

from services.console import app
from services.console.middleware import TOKEN_FIELD
from services.console.pages import SECTIONS, all_pages, navigation
from services.console.pages.declaration import Page
from services.console.rendering import assets
from services.console.security import NOTICE_COOKIE, POLICY, SESSION_COOKIE, ZONE_COOKIE
from services.console.sign_in.roles import Role
from services.console.visit import Notice, Visit, _encoded
from shared.errors import InfrastructureError
from shared.http.problem import ProblemError
from tests.fakes.console import Browser, Console, running_console

PAGES = all_pages()
# Responses of a handler without any service: it was allowed to run.
HANDLED = {200, 303, 400, 404, 409, 413, 415, 422, 503, 504}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def console(database_url: str) -> AsyncIterator[Console]:
    async with running_console(database_url) as console:
        yield console


@pytest_asyncio.fixture(loop_scope="module")
async def browser(console: Console) -> AsyncIterator[Browser]:
    async with console.browser(Role.ADMIN) as browser:
        yield browser


def example(page: Page) -> str:
    """Return a URL of a page, with something in place of each parameter."""
    return re.sub(r"{(\w+)(:[^}]*)?}", "0190b0a0-0000-7000-8000-000000000000", page.path)


async def test_m11_every_page_declares_its_role() -> None:
    assert PAGES
    assert all(isinstance(page.role, Role) for page in PAGES)
    assert all(page.method in ("GET", "POST") for page in PAGES)
    assert len({(page.method, page.path) for page in PAGES}) == len(PAGES)


async def test_m11_actions_require_more_than_a_viewer() -> None:
    for page in PAGES:
        if page.method == "POST":
            assert page.role is not None
            assert page.role >= Role.OPERATOR, page.path


async def test_the_navigation_links_pages_only() -> None:
    links = navigation(PAGES)
    assert tuple(links) == SECTIONS
    paths = {page.path for page in PAGES if page.method == "GET"}
    for section in links.values():
        assert {link.path for link in section} <= paths


async def test_m11_each_page_is_open_to_its_roles_only(console: Console) -> None:
    """Walk all pages with all roles, and without a session."""
    async with console.browser() as nobody:
        for page in PAGES:
            if page.live:  # an EventSource follows no redirect to another site
                assert (await nobody.get(example(page), follow=False)).status == 401, page.path
            elif page.method == "GET":
                shown = await nobody.get(example(page), follow=False)
                assert shown.status == 303, page.path
                assert shown.location.path == "/sign-in"
            else:
                shown = await nobody.post(example(page), csrf="x")
                assert shown.status == 401, page.path
    for role in Role:
        async with console.browser(role) as browser:
            csrf = (await browser.get("/")).csrf
            for page in PAGES:
                assert page.role is not None
                if page.live:  # its body does not end
                    async with browser.http.get(browser.origin + example(page)) as stream:
                        assert stream.content_type == "text/event-stream", page.path
                    continue
                if page.method == "GET":
                    shown = await browser.get(example(page), follow=False)
                else:
                    shown = await browser.post(example(page), csrf=csrf, follow=False)
                if role >= page.role:
                    assert shown.status in HANDLED, (page.path, role, shown.status)
                else:
                    assert shown.status == 403, (page.path, role)
                    assert shown.heading == "You may not do this"


@pytest.mark.parametrize(
    ("csrf", "headers"),
    [
        (None, {"Origin": "https://evil.example"}),
        (None, {"Origin": "null"}),
        (None, {"Origin": "http://127.0.0.1:1"}),
        ("", {}),
        ("0" * 64, {}),
        ("é", {}),
    ],
)
async def test_m11_a_form_of_another_site_has_no_effect(
    browser: Browser, csrf: str | None, headers: dict[str, str]
) -> None:
    shown = await browser.post("/sign-out", csrf=csrf, headers=headers)
    assert shown.status == 403
    assert (await browser.get("/", follow=False)).status == 200


async def test_m11_without_origin_the_metadata_and_the_token_decide(browser: Browser) -> None:
    csrf = (await browser.get("/")).csrf

    async def sign_out(**headers: str) -> int:
        async with browser.http.post(
            f"{browser.origin}/sign-out",
            data={TOKEN_FIELD: csrf},
            headers=headers,
            allow_redirects=False,
        ) as response:
            return response.status

    assert await sign_out(**{"Sec-Fetch-Site": "cross-site"}) == 403
    assert await sign_out(**{"Sec-Fetch-Site": "same-site"}) == 403
    assert await sign_out() == 303


async def test_m11_the_token_of_another_session_is_refused(
    console: Console, browser: Browser
) -> None:
    async with console.browser(Role.ADMIN) as other:
        token = (await other.get("/")).csrf
    assert (await browser.post("/sign-out", csrf=token)).status == 403


async def test_m11_a_form_must_be_a_form_and_not_too_large(browser: Browser) -> None:
    csrf = (await browser.get("/")).csrf
    url, origin = f"{browser.origin}/sign-out", {"Origin": browser.origin}
    async with browser.http.post(url, json={TOKEN_FIELD: csrf}, headers=origin) as response:
        assert response.status == 415
    shown = await browser.post("/sign-out", {"text": "x" * 300_000}, csrf=csrf)
    assert shown.status == 413
    assert shown.heading == "The form is too large"
    broken = {**origin, "Content-Type": "multipart/form-data"}
    async with browser.http.post(url, data=b"nonsense", headers=broken) as response:
        assert response.status == 400
    assert (await browser.get("/", follow=False)).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/static/nothing.js", 404),
        ("GET", "/static/..%2f..%2fsettings.py", 404),
        ("PUT", "/", 405),
        ("GET", "/sign-out", 405),
        ("GET", "/?client=ringback.scheduler", 422),
        ("GET", "/?client=" + "x" * 256, 422),
        ("GET", "/?client=a%00b", 422),
    ],
)
async def test_m11_errors_are_pages(browser: Browser, method: str, path: str, status: int) -> None:
    url = URL(browser.origin + path, encoded=True)
    async with browser.http.request(method, url, allow_redirects=False) as response:
        text = await response.text()
        assert response.status == status
        assert response.content_type == "text/html"
        assert "<h1>" in text
        assert response.headers["Content-Security-Policy"] == POLICY


async def test_m11_every_response_has_the_headers(browser: Browser) -> None:
    style = assets()["style.css"].url
    for path in ("/", "/nothing", "/sign-out", "/sign-in", style):
        headers = (await browser.get(path, follow=False)).headers
        assert headers["Content-Security-Policy"] == POLICY
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        if path == style:
            assert "immutable" in headers["Cache-Control"]
        else:
            assert headers["Cache-Control"] == "no-store"


async def test_m11_the_policy_forbids_everything_inline_and_foreign() -> None:
    assert "default-src 'none'" in POLICY
    assert "script-src 'self';" in POLICY
    assert "unsafe" not in POLICY
    assert "http" not in POLICY


async def test_m11_pages_contain_nothing_inline_and_nothing_foreign(browser: Browser) -> None:
    text = (await browser.get("/")).text
    assert not re.search(r"<style|style=|<script(?! type=\"module\" src=\"/)| on\w+=", text)
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text)


async def test_static_files_change_their_url_with_their_content(browser: Browser) -> None:
    for name, asset in assets().items():
        shown = await browser.get(asset.url)
        assert shown.status == 200
        assert shown.text.encode() == asset.body
        old = await browser.get(f"/static/{name}?v=old")
        assert old.headers["Cache-Control"] == "no-store"


async def test_scripts_are_few_and_small() -> None:
    lines = [
        len(asset.body.splitlines()) for name, asset in assets().items() if name.endswith(".js")
    ]
    assert sum(lines) < 600


async def test_links_keep_the_selected_client(browser: Browser) -> None:
    text = (await browser.get("/?client=shop+%26+co")).text
    links = re.findall(r'<li><a href="([^"]+)"', text)
    assert links
    assert all("client=shop+%26amp%3B+co" in link or "client=shop" in link for link in links)
    assert 'value="shop &amp; co"' in text


async def test_times_are_in_the_zone_of_the_viewer(browser: Browser) -> None:
    assert "Times are in UTC" in (await browser.get("/")).text
    for zone, shown in (("Europe/Berlin", "Europe/Berlin"), ("../etc", "UTC"), ("<b>", "UTC")):
        browser.plant(ZONE_COOKIE, zone)
        assert f"Times are in {shown}" in (await browser.get("/")).text


async def test_a_notice_is_shown_once_and_as_text(browser: Browser) -> None:
    notice = _encoded(Notice("<b>12</b> redriven", "good"))
    browser.plant(NOTICE_COOKIE, notice)
    assert "&lt;b&gt;12&lt;/b&gt; redriven" in (await browser.get("/")).text
    assert "redriven" not in (await browser.get("/")).text


@pytest.mark.parametrize("value", ["x", "W10=", "bnVsbA==", "é"])
async def test_a_malformed_notice_is_ignored(console: Console, value: str) -> None:
    async with console.browser(Role.VIEWER) as browser:
        cookie = next(
            morsel.value for morsel in browser.http.cookie_jar if morsel.key == SESSION_COOKIE
        )
        header = f"{SESSION_COOKIE}={cookie}; {NOTICE_COOKIE}={value}"
        async with (
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as plain,
            plain.get(browser.origin + "/", headers={"Cookie": header}) as response,
        ):
            assert response.status == 200
            assert 'class="notice' not in await response.text()


async def test_m11_the_handler_runs_only_for_its_roles_and_after_the_check_of_the_form(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An action of administrators, beside all other pages."""
    done: list[str] = []

    async def act(visit: Visit) -> web.Response:
        """Do something dangerous."""
        done.append(visit.text("name"))
        return visit.redirect(visit.url("/done"), Notice("Done."))

    page = Page("POST", "/act", Role.ADMIN, "Act", act, max_body=1000)
    monkeypatch.setattr(app, "all_pages", lambda: (*PAGES, page))
    async with running_console(database_url) as console:
        for role in Role:
            async with console.browser(role) as browser:
                csrf = (await browser.get("/")).csrf
                allowed = role is Role.ADMIN
                for form, expected in (
                    ({"name": f"{role}"}, 303 if allowed else 403),
                    ({"name": "wrong token", "csrf": "wrong"}, 403),
                    ({"name": "x" * 2000}, 413 if allowed else 403),
                ):
                    shown = await browser.post("/act", form, csrf=csrf, follow=False)
                    assert shown.status == expected, (role, form)
                foreign = {"Origin": "https://evil.example"}
                shown = await browser.post("/act", {"name": "o"}, csrf=csrf, headers=foreign)
                assert shown.status == 403
    assert done == ["admin"]


@pytest.mark.parametrize(
    ("error", "status", "hidden"),
    [
        (ProblemError(HTTPStatus.NOT_FOUND, "x", "No callback 7."), 404, None),
        (ProblemError(HTTPStatus.CONFLICT, "x", "It is delivered."), 409, None),
        (ProblemError(HTTPStatus.GATEWAY_TIMEOUT, "x", "Send an Idempotency-Key."), 504, "Idemp"),
        (InfrastructureError("the broker is away"), 503, None),
        (RuntimeError("canary"), 500, "canary"),
        (ProblemError(HTTPStatus.TOO_MANY_REQUESTS, "x", "<b>Slow</b> down."), 429, "<b>"),
    ],
)
async def test_failures_of_services_and_bugs_are_pages(
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    hidden: str | None,
) -> None:
    async def fail(_: Visit) -> web.Response:
        """Fail."""
        raise error

    page = Page("GET", "/fail", Role.VIEWER, "Fail", fail)
    monkeypatch.setattr(app, "all_pages", lambda: (*PAGES, page))
    async with running_console(database_url) as console, console.browser(Role.VIEWER) as browser:
        shown = await browser.get("/fail")
        assert shown.status == status
        assert shown.headers["Content-Security-Policy"] == POLICY
        assert "The viewer" in shown.text  # the navigation stays
        if hidden is None:
            assert str(error) in shown.text
        else:
            assert hidden not in shown.text


async def test_m11_a_live_part_does_not_keep_an_idle_session_open(console: Console) -> None:
    async def seen() -> object:
        sql = "SELECT seen_at FROM console.sessions ORDER BY expires_at DESC LIMIT 1"
        row = await console.database.fetchrow(sql)
        assert row is not None
        return row["seen_at"]

    async with console.browser(Role.VIEWER) as browser:
        await console.database.execute(
            "UPDATE console.sessions SET seen_at = now() - interval '5 minutes'"
        )
        before = await seen()
        async with browser.http.get(f"{browser.origin}/live/overview") as stream:
            assert stream.status == 200
        assert await seen() == before
        await browser.get("/jobs")
        assert await seen() != before
