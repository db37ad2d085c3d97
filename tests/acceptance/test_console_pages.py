"""Every page of the console in a real browser, with everything running and hostile data.

N8: pages are accessible, fit on a phone, work without scripts, and run no script of others.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import aiohttp
import pytest
from playwright.async_api import Browser

from deploy.local.install import Installation
from tests.fakes.chromium import HOSTILE, Window, another, chromium, window
from tests.fakes.up import EVERYTHING_IS_RUNNING, up
from tests.fakes.waiting import until

# Keys are shorter than texts.
KEY = HOSTILE[:200]
MAX_PAGES = 80


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest.fixture
async def console(
    browser: Browser,
    installation: Installation,
    stack_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[str]:
    """Run everything with the demonstration, and yield the URL of the console."""
    assert browser
    assert installation
    monkeypatch.setenv("RINGBACK_LOCAL_DIRECTORY", str(stack_directory / "console"))
    async with up() as running:
        output = await running.until(EVERYTHING_IS_RUNNING)
        gateway = address(output, "HTTP gateway")
        sandbox = address(output, "sandbox, webhooks")
        await attack(gateway, sandbox)
        yield address(output, "console")


def address(output: str, name: str) -> str:
    """Return a printed URL without its path."""
    found = re.search(rf"  {name} +(http://[^/\s]+)", output)
    assert found, output
    return found[1]


async def attack(gateway: str, sandbox: str) -> None:
    """Put markup that would run a script into every field that clients and receivers control."""
    mailbox = f"hostile-{uuid4().hex[:6]}"
    async with aiohttp.ClientSession() as http:

        async def send(method: str, url: str, body: Any) -> Any:
            async with http.request(method, url, json=body) as response:
                text = await response.text()
                assert response.ok, (url, text)
                return json.loads(text) if text else None

        answers = {"behaviour": {"kind": "respond", "status": 410, "body": HOSTILE}}
        await send("PUT", f"{sandbox}/api/mailboxes/{mailbox}", answers)
        callback = {
            "url": f"{sandbox}/hooks/{mailbox}?x={quote(KEY)}",
            "delay": 0,
            "hmac_secret": "your-secret-key",
            "context": {"text": HOSTILE},
            "group_key": KEY,
            "event_key": KEY,
        }
        created = await send("POST", f"{gateway}/v1/callbacks", callback)
        await send(
            "POST", f"{gateway}/v1/callbacks", callback | {"delay": 3600, "event_key": f"2{KEY}"}
        )
        endpoint = {
            "url": f"{sandbox}/hooks/{mailbox}",
            "event_types": ["*"],
            "description": HOSTILE,
        }
        await send("POST", f"{gateway}/v1/endpoints", endpoint)
        message = {"event_type": "a", "payload": {"text": HOSTILE}, "id": uuid4().hex}
        await send("POST", f"{gateway}/v1/messages", message)

        async def recorded() -> bool:
            path = f"{gateway}/v1/callbacks/{created['id']}/attempts"
            async with http.get(path) as response:
                return bool(response.ok and (await response.json())["items"])

        await until(recorded, 60)


async def walk(opened: Window, start: str, check: Any) -> list[str]:
    """Follow the links from a page, one for each form of URL, and check each page."""
    seen: set[Any] = set()
    waiting = [start]
    walked: list[str] = []
    while waiting and len(walked) < MAX_PAGES:
        path = waiting.pop(0)
        status = await opened.open(path)
        assert status == 200, (path, status)
        await check()
        walked.append(path)
        for link in await opened.links():
            form = shape(link)
            if form not in seen and "/live/" not in link and ".csv" not in link:
                seen.add(form)
                waiting.append(link)
    return walked


def shape(link: str) -> tuple[str, ...]:
    """Return what links to the same page with other ids and values have in common."""
    path, _, query = link.partition("?")
    general = re.sub(r"[^/]*\d[^/]*", "*", path)
    return (re.sub(r"(/dead-letters)/.*", r"\1/*", general), *sorted(re.findall(r"(\w+)=", query)))


async def replay_in_two_windows(opened: Window) -> None:
    """Replay a callback in one window; the other one shows the new attempt."""
    await opened.open("/attempts?status=failed")
    [path, *_] = [link for link in await opened.links() if link.startswith("/callbacks/one?")]
    await opened.open(path)
    other = await another(opened.page.context, opened.origin)
    await other.open(path)
    attempts = other.page.locator("ol.timeline > li").filter(has_text="ttempt")
    before = await attempts.count()
    await opened.page.get_by_role("button", name="Replay …").click()
    await opened.press("Send again")
    assert await opened.page.get_by_role("status").is_visible()
    # Back and forward after the POST send nothing again.
    await opened.page.go_back()
    await opened.page.go_forward()
    assert not await opened.page.get_by_role("status").is_visible()

    async def shown() -> bool:
        await other.page.reload()
        return bool(await attempts.count() > before)

    await until(shown, 60)


async def redrive_with_the_keyboard(opened: Window) -> None:
    """Redrive dead callbacks after a count, without a pointer."""
    await opened.open("/dead-letters/callbacks")
    button = opened.page.get_by_role("button", name=re.compile("^Redrive")).first
    await button.focus()
    await opened.page.keyboard.press("Enter")
    dialog = opened.page.locator("dialog[open]")
    assert re.search(r"\d", await dialog.inner_text())
    await opened.page.keyboard.press("Escape")
    assert await opened.page.locator("dialog[open]").count() == 0
    await opened.page.keyboard.press("Enter")
    submit = opened.page.locator("dialog[open] button.primary")
    await submit.focus()
    async with opened.page.expect_navigation():
        await opened.page.keyboard.press("Enter")
    assert "/jobs/" in opened.page.url


async def pause_in_two_windows(opened: Window) -> None:
    """Pause a target in one window and resume it in the other."""
    await opened.open("/targets")
    [path, *_] = [link for link in await opened.links() if link.startswith("/targets/one?")]
    await opened.open(path)
    other = await another(opened.page.context, opened.origin)
    await opened.page.get_by_role("button", name=re.compile("^Pause")).first.click()
    async with opened.page.expect_navigation():
        await opened.page.locator("dialog[open] button.primary").click()
    await other.open(path)
    resume = other.page.get_by_role("button", name=re.compile("^Resume")).first
    async with other.page.expect_navigation():
        await resume.click()
    await opened.page.reload()
    assert await opened.page.get_by_role("button", name=re.compile("^Pause")).first.is_visible()


@pytest.mark.slow
async def test_n8_every_page_is_accessible_and_safe_and_its_actions_work(
    console: str, browser: Browser
) -> None:
    async with window(browser, console) as opened:
        await opened.sign_in("Ada")
        walked = await walk(opened, "/", opened.check)
        for expected in ("/attempts", "/callbacks/one?id=", "/dead-letters/callbacks", "/mailings"):
            assert any(path.startswith(expected) for path in walked), (expected, walked)
        await replay_in_two_windows(opened)
        await pause_in_two_windows(opened)
        await redrive_with_the_keyboard(opened)

    async with window(browser, console, java_script_enabled=False) as plain:
        await plain.sign_in("Vera")

        async def has_content() -> None:
            assert await plain.page.locator("main h1").is_visible()
            await asyncio.sleep(0)

        await walk(plain, "/", has_content)
