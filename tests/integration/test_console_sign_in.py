"""M11: sign-in at the sandbox's OpenID provider, sessions, and everything that can go wrong."""

import asyncio
import hashlib
import html
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from yarl import URL

from deploy.local.database import Database as Server
from services.console.security import ATTEMPT_COOKIE, SESSION_COOKIE
from services.console.sign_in import provider as provider_module
from services.console.sign_in.roles import Role
from tests.fakes.console import Browser, Console, issuer_of, running_console
from tests.fakes.sandbox import Sandbox, running_sandbox
from tests.fakes.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_sandbox() -> AsyncIterator[Sandbox]:
    async with running_sandbox() as sandbox:
        yield sandbox


@pytest_asyncio.fixture(loop_scope="module")
async def sandbox(shared_sandbox: Sandbox) -> AsyncIterator[Sandbox]:
    """Yield a sandbox whose provider works when the test begins."""
    yield shared_sandbox
    await shared_sandbox.configure("/api/oidc", fault=None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def console(database_url: str, shared_sandbox: Sandbox) -> AsyncIterator[Console]:
    async with running_console(database_url, issuer=issuer_of(shared_sandbox)) as console:
        yield console


@pytest_asyncio.fixture(loop_scope="module")
async def browser(console: Console) -> AsyncIterator[Browser]:
    async with console.browser() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def new_sandbox() -> AsyncIterator[Sandbox]:
    """Yield a sandbox whose keys this test replaces."""
    async with running_sandbox() as sandbox:
        yield sandbox


@pytest_asyncio.fixture(loop_scope="module")
async def new_browser(database_url: str, new_sandbox: Sandbox) -> AsyncIterator[Browser]:
    async with (
        running_console(database_url, issuer=issuer_of(new_sandbox)) as console,
        console.browser() as browser,
    ):
        yield browser


def cookies(browser: Browser) -> dict[str, str]:
    """Return the cookies that the browser has for the console."""
    return {
        name: morsel.value
        for name, morsel in browser.http.cookie_jar.filter_cookies(URL(browser.origin)).items()
    }


async def to_provider(browser: Browser, path: str = "/sign-in") -> URL:
    """Start a sign-in, and return the URL of the provider."""
    shown = await browser.get(path, follow=False)
    assert shown.status == 303, shown.text
    return shown.location


async def back(browser: Browser, at_provider: URL, person: str = "ada") -> URL:
    """Sign in at the provider, and return the URL of the console that it redirects to."""
    shown = await browser.get(at_provider.update_query({"as": person}), follow=False)
    assert shown.status == 302, shown.text
    return shown.location


async def sessions(console: Console) -> int:
    row = await console.database.fetchrow("SELECT count(*) AS number FROM console.sessions")
    number: int = row["number"]
    return number


@pytest.mark.parametrize(
    ("person", "name", "role"),
    [("vera", "Vera", "viewer"), ("omar", "Omar", "operator"), ("ada", "Ada", "admin")],
)
async def test_m11_one_click_signs_in_and_leads_to_the_page_that_was_opened(
    browser: Browser, person: str, name: str, role: str
) -> None:
    shown = await browser.sign_in(person, "/?client=shop")
    assert shown.status == 200
    assert str(shown.url) == f"{browser.origin}/?client=shop"
    assert name in shown.text
    assert f"{person}, {role}" in shown.text


async def test_m11_the_request_to_the_provider_is_a_code_flow_with_pkce_state_and_nonce(
    browser: Browser,
) -> None:
    query = (await to_provider(browser)).query
    assert query["response_type"] == "code"
    assert query["scope"].split()[0] == "openid"
    assert query["redirect_uri"] == f"{browser.origin}/sign-in/callback"
    assert query["code_challenge_method"] == "S256"
    assert all(len(query[name]) >= 43 for name in ("state", "nonce", "code_challenge"))


async def test_m11_the_cookie_is_for_this_host_only_and_hidden_from_scripts(
    browser: Browser,
) -> None:
    shown = await browser.get(await back(browser, await to_provider(browser)), follow=False)
    [session] = [
        each
        for each in shown.headers.getall("Set-Cookie")  # type: ignore[attr-defined]
        if each.startswith(f"{SESSION_COOKIE}=")
    ]
    attributes = {each.strip().lower() for each in session.split(";")[1:]}
    assert attributes == {"path=/", "secure", "httponly", "samesite=lax"}


async def test_m11_only_the_hash_of_the_cookie_is_stored(
    console: Console, browser: Browser
) -> None:
    await browser.sign_in("ada")
    cookie = cookies(browser)[SESSION_COOKIE]
    rows = await console.database.fetch("SELECT s::text AS row, hash FROM console.sessions s")
    assert hashlib.sha256(cookie.encode()).digest() in [row["hash"] for row in rows]
    assert all(cookie not in row["row"] for row in rows)


@pytest.mark.parametrize(
    ("fault", "heading"),
    [
        ("nonce", "The ID token is from another sign-in"),
        ("audience", "The ID token is for another application"),
        ("issuer", "The ID token is from another issuer"),
        ("algorithm", "The ID token is signed with a forbidden algorithm"),
        ("unsigned", "The ID token is signed with a forbidden algorithm"),
        ("signature", "The signature of the ID token is not valid"),
        ("key", "The ID token is signed with an unknown key"),
        ("expired", "The ID token is expired or not valid yet"),
        ("no_role", "You have no role in the console"),
    ],
)
async def test_m11_a_faulty_token_is_refused_with_a_clear_page(
    console: Console, browser: Browser, sandbox: Sandbox, fault: str, heading: str
) -> None:
    before = await sessions(console)
    await sandbox.configure("/api/oidc", fault=fault)
    shown = await browser.sign_in("ada")
    assert shown.status == 403
    assert shown.heading == heading
    assert "Sign in again" in shown.text
    assert SESSION_COOKIE not in cookies(browser)
    assert await sessions(console) == before


async def test_m11_the_provider_is_unavailable_before_and_after_the_redirect(
    browser: Browser, sandbox: Sandbox
) -> None:
    callback = await back(browser, await to_provider(browser))
    await sandbox.configure("/api/oidc", fault="unavailable")
    shown = await browser.get(callback)
    assert (shown.status, shown.headers["Retry-After"]) == (503, "5")
    assert shown.heading == "The OpenID provider is unavailable"
    await sandbox.configure("/api/oidc", fault=None)
    assert (await browser.sign_in("ada")).status == 200


async def test_m11_a_provider_that_is_down_gets_a_page(database_url: str) -> None:
    async with running_console(database_url) as console, console.browser() as browser:
        shown = await browser.get("/")
        assert shown.status == 503
        assert shown.heading == "The OpenID provider is unavailable"


async def test_m11_a_provider_that_hangs_delays_its_users_together(
    database_url: str, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    """They wait for one request, not one after the other."""
    monkeypatch.setattr(provider_module, "TIMEOUT", 1.0)
    monkeypatch.setattr(provider_module, "FAILURE_LIFETIME", 60.0)  # also on a busy machine
    url = await sandbox.mailbox(behaviour={"kind": "hang"})
    async with running_console(database_url, issuer=url) as console, console.browser() as browser:
        shown = await asyncio.gather(*(browser.get("/sign-in") for _ in range(20)))
        assert {each.status for each in shown} == {503}
    requests = await sandbox.webhooks(url)
    assert len(requests) == 1


async def test_m11_an_issuer_that_calls_itself_otherwise_is_refused(
    database_url: str, sandbox: Sandbox
) -> None:
    issuer = f"{issuer_of(sandbox)}/"  # the document is found, but names another issuer
    async with (
        running_console(database_url, issuer=issuer) as console,
        console.browser() as browser,
    ):
        shown = await browser.get("/")
        assert shown.status == 502
        assert "RINGBACK_OIDC_ISSUER" in shown.text


async def test_m11_a_wrong_client_secret_is_a_matter_of_configuration(
    database_url: str, sandbox: Sandbox
) -> None:
    async with (
        running_console(database_url, issuer=issuer_of(sandbox), secret="wrong") as console,
        console.browser() as browser,
    ):
        shown = await browser.sign_in("ada")
        assert shown.status == 502
        assert "invalid_client" in shown.text


async def test_m11_a_rotated_key_is_found_at_once(
    monkeypatch: pytest.MonkeyPatch, new_browser: Browser, new_sandbox: Sandbox
) -> None:
    monkeypatch.setattr(provider_module, "REFETCH_INTERVAL", 0.0)
    assert (await new_browser.sign_in("ada")).status == 200
    async with new_sandbox.session.post("/api/oidc/rotate") as response:
        assert response.status == 200
    new_browser.http.cookie_jar.clear()
    assert (await new_browser.sign_in("vera")).status == 200


async def test_m11_unknown_keys_are_looked_up_once_a_minute_at_most(
    new_browser: Browser, new_sandbox: Sandbox
) -> None:
    assert (await new_browser.sign_in("ada")).status == 200
    async with new_sandbox.session.post("/api/oidc/rotate") as response:
        assert response.status == 200
    new_browser.http.cookie_jar.clear()
    shown = await new_browser.sign_in("vera")
    assert shown.heading == "The ID token is signed with an unknown key"


async def test_m11_a_removed_key_is_refused_when_the_kept_keys_are_old(
    monkeypatch: pytest.MonkeyPatch, new_browser: Browser, new_sandbox: Sandbox
) -> None:
    assert (await new_browser.sign_in("ada")).status == 200
    new_browser.http.cookie_jar.clear()
    # A token of the old key, redeemed after the provider has revoked that key.
    await new_sandbox.configure("/api/oidc", fault="key")
    monkeypatch.setattr(provider_module, "KEYS_LIFETIME", 0.0)
    assert (
        await new_browser.sign_in("ada")
    ).heading == "The ID token is signed with an unknown key"


@pytest.mark.parametrize("change", ["state", "no_state", "other_browser", "twice"])
async def test_m11_a_redirect_that_this_browser_did_not_start_is_refused(
    console: Console, browser: Browser, change: str
) -> None:
    callback = await back(browser, await to_provider(browser))
    match change:
        case "state":
            callback = callback.update_query(state="x" * 43)
        case "no_state":
            callback = callback.without_query_params("state")
        case "twice":
            assert (await browser.get(callback)).status == 200
    before = await sessions(console)
    if change == "other_browser":
        # An attacker sends a link with the attacker's own code: the victim must not be signed in.
        async with console.browser() as victim:
            shown = await victim.get(callback, follow=False)
            assert SESSION_COOKIE not in cookies(victim)
    else:
        shown = await browser.get(callback, follow=False)
    assert shown.status == 400
    assert shown.heading == "This sign-in is not known"
    assert await sessions(console) == before


async def test_m11_a_code_works_once_and_only_with_its_verifier(
    browser: Browser, console: Console
) -> None:
    stolen = await back(browser, await to_provider(browser))
    async with console.browser() as thief:
        own = await back(thief, await to_provider(thief))
        # The thief has a state and a verifier of their own, but not those of the code.
        shown = await thief.get(own.update_query(code=stolen.query["code"]))
        assert shown.status == 400
        assert shown.heading == "The provider refused the code of this sign-in"
    # The attempt has used the code up.
    assert (await browser.get(stolen)).status == 400


async def test_m11_a_response_of_another_issuer_is_refused(browser: Browser) -> None:
    callback = await back(browser, await to_provider(browser))
    shown = await browser.get(callback.update_query(iss="https://evil.example"))
    assert shown.heading == "The ID token is from another issuer"


async def test_m11_a_user_who_cancels_gets_a_page_without_the_text_of_the_link(
    browser: Browser,
) -> None:
    callback = await back(browser, await to_provider(browser), person="")
    assert callback.query["error"] == "access_denied"
    shown = await browser.get(callback.update_query(error_description="call +1 555 now"))
    assert shown.status == 403
    assert "555" not in shown.text


async def test_m11_two_windows_sign_in_at_the_same_time(browser: Browser) -> None:
    one = await to_provider(browser, "/sign-in?next=/%3Fclient%3Done")
    two = await to_provider(browser, "/sign-in?next=/%3Fclient%3Dtwo")
    first = await browser.get(await back(browser, one))
    second = await browser.get(await back(browser, two))
    assert (first.url.query["client"], second.url.query["client"]) == ("one", "two")


async def test_m11_abandoned_attempts_do_not_add_up(browser: Browser) -> None:
    for _ in range(12):
        await to_provider(browser)
    assert len([name for name in cookies(browser) if name.startswith(ATTEMPT_COOKIE)]) <= 6


@pytest.mark.parametrize(
    "path",
    ["//evil.example", "https://evil.example", "/\\evil.example", "/%0d%0aSet-Cookie:%20x=1\r\n"],
)
async def test_m11_the_way_back_never_leads_to_another_site(browser: Browser, path: str) -> None:
    at_provider = await to_provider(browser, str(URL("/sign-in").with_query(next=path)))
    shown = await browser.get(await back(browser, at_provider), follow=False)
    assert shown.status == 303
    assert shown.headers["Location"] == "/"


async def test_m11_a_session_cannot_be_fixed(console: Console, browser: Browser) -> None:
    """A cookie that an attacker has planted is not the session after the sign-in."""
    async with console.browser(Role.VIEWER) as attacker:
        planted = cookies(attacker)[SESSION_COOKIE]
        callback = await back(browser, await to_provider(browser))
        browser.plant(SESSION_COOKIE, planted)
        assert (await browser.get(callback)).status == 200
        assert cookies(browser)[SESSION_COOKIE] != planted
        # Nor does the planted one become a session of the user.
        assert (await attacker.get("/", follow=False)).status == 303


async def test_m11_a_made_up_cookie_is_no_session(browser: Browser) -> None:
    browser.plant(SESSION_COOKIE, "a" * 43)
    assert (await browser.get("/", follow=False)).status == 303


async def test_m11_signing_out_ends_the_session_for_every_copy_of_the_cookie(
    browser: Browser,
) -> None:
    page = await browser.sign_in("ada")
    kept = cookies(browser)[SESSION_COOKIE]
    shown = await browser.post("/sign-out", csrf=page.csrf)
    assert (shown.url.path, shown.heading) == ("/signed-out", "Signed out")
    assert SESSION_COOKIE not in cookies(browser)
    # RP-initiated: the page also leads to the sign-out of the provider, which leads back.
    link = re.search(r'href="([^"]*end-session[^"]*)"', shown.text)
    assert link
    returned = await browser.get(URL(html.unescape(link[1]), encoded=True))
    assert str(returned.url) == f"{browser.origin}/signed-out"
    browser.plant(SESSION_COOKIE, kept)
    assert (await browser.get("/", follow=False)).status == 303


async def test_m11_a_link_cannot_sign_out(browser: Browser) -> None:
    await browser.sign_in("ada")
    assert (await browser.get("/sign-out")).status == 405
    assert (await browser.get("/", follow=False)).status == 200


async def age(console: Console, **columns: int) -> None:
    """Move times of all sessions into the past, by these seconds."""
    for column, seconds in columns.items():
        sql = f"UPDATE console.sessions SET {column} = {column} - make_interval(secs => $1)"  # noqa: S608 - our own names
        await console.database.execute(sql, seconds)


async def test_m11_an_idle_session_ends_and_a_used_one_does_not(console: Console) -> None:
    async with console.browser(Role.VIEWER) as browser:
        for _ in range(3):
            await age(console, seen_at=3000)
            assert (await browser.get("/", follow=False)).status == 200
        await age(console, seen_at=3601)
        assert (await browser.get("/", follow=False)).status == 303
        assert await console.sessions.delete_ended() >= 1


async def test_m11_a_session_ends_after_its_lifetime_however_busy_it_is(console: Console) -> None:
    async with console.browser(Role.VIEWER) as browser:
        await age(console, expires_at=43_000)
        assert (await browser.get("/", follow=False)).status == 200
        await age(console, expires_at=200)
        assert (await browser.get("/", follow=False)).status == 303


async def test_m11_an_action_after_the_end_of_the_session_says_that_nothing_was_done(
    console: Console,
) -> None:
    async with console.browser(Role.OPERATOR) as browser:
        csrf = (await browser.get("/")).csrf
        await age(console, seen_at=3601)
        shown = await browser.post("/sign-out", csrf=csrf)
        assert shown.status == 401
        assert shown.heading == "Your session has ended"


async def test_m11_sessions_survive_a_restart_of_the_database(own_database: Server) -> None:
    async with (
        running_console(own_database.url) as console,
        console.browser(Role.ADMIN) as browser,
    ):
        assert (await browser.get("/", follow=False)).status == 200
        own_database.stop(immediate=True)
        own_database.start()

        async def works() -> bool:
            return (await browser.get("/", follow=False)).status == 200

        await until(works, 60)


async def test_m11_sessions_survive_a_restart_of_the_console(database_url: str) -> None:
    async with running_console(database_url) as before, before.browser(Role.VIEWER) as browser:
        cookie = cookies(browser)[SESSION_COOKIE]
    async with running_console(database_url) as after, after.browser() as browser:
        browser.plant(SESSION_COOKIE, cookie)
        assert (await browser.get("/", follow=False)).status == 200


async def test_m11_without_the_database_a_page_says_so(own_database: Server) -> None:
    async with (
        running_console(own_database.url) as console,
        console.browser(Role.ADMIN) as browser,
    ):
        own_database.stop(immediate=True)
        shown = await browser.get("/")
        assert shown.status == 503
        assert shown.heading == "A part of Ringback is unavailable"


async def test_m11_localhost_leads_to_the_address_of_the_cookies(browser: Browser) -> None:
    port = URL(browser.origin).port
    shown = await browser.get(URL(f"http://localhost:{port}/?client=a"), follow=False)
    assert shown.status == 307
    assert shown.headers["Location"] == f"{browser.origin}/?client=a"


async def test_m11_the_names_of_users_are_text(
    database_url: str, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    from services.sandbox import openid_tokens  # noqa: PLC0415

    hostile = openid_tokens.Person("eve", "<img src=x onerror=alert(1)>\u202e\x00", "viewer")
    monkeypatch.setitem(openid_tokens.PEOPLE, "eve", hostile)
    async with (
        running_console(database_url, issuer=issuer_of(sandbox)) as console,
        console.browser() as browser,
    ):
        shown = await browser.get(await back(browser, await to_provider(browser), "eve"))
        assert shown.status == 200
        assert "<img" not in shown.text
        assert "&lt;img" in shown.text
        assert "\u202e" not in shown.text
