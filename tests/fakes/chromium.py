"""Debian's Chromium, driven by Playwright, and what every page of the console must satisfy."""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, Dialog, Page, async_playwright
from yarl import URL

from services.console.security import SESSION_COOKIE, ZONE_COOKIE

CHROMIUM: Final = Path("/usr/bin/chromium")
BERLIN: Final = "Europe/Berlin"
# A phone in the hand, in CSS pixels.
PHONE: Final = (360, 740)
DESKTOP: Final = (1280, 900)
# Markup that runs a script in each of the usual places, unless it is escaped.
HOSTILE: Final = (
    "'\"></title></textarea></script></style><script>window.attacked=1</script>"
    "<img src=x onerror=window.attacked=1><svg onload=window.attacked=1>"
    "<a href=javascript:window.attacked=1 autofocus onfocus=window.attacked=1>{{7*7}}"
)
_SERIOUS: Final = {"serious", "critical"}


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a browser without a display. The test is skipped if none is installed."""
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed. Install it: sudo apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield browser
        finally:
            await browser.close()


@dataclass(slots=True)
class Window:
    """A window of a browser profile, and everything that went wrong in it.

    faults: errors of scripts, violations of the Content-Security-Policy, dialogs of scripts.
    """

    page: Page
    origin: str
    faults: list[str] = field(default_factory=list)

    async def open(self, path: str) -> int:
        """Open a page of the console, and return its status."""
        response = await self.page.goto(self.origin + path)
        assert response is not None
        status: int = response.status
        return status

    async def heading(self) -> str:
        """Return the heading of the page."""
        text: str = await self.page.locator("h1").inner_text()
        return text

    async def press(self, button: str) -> None:
        """Press the visible button with this text, and wait for the page that follows."""
        async with self.page.expect_navigation():
            await self.page.get_by_role("button", name=button, exact=True).click()

    async def sign_in(self, person: str, path: str = "/") -> None:
        """Open a page, and sign in at the sandbox with one click on the way."""
        await self.page.goto(self.origin + path)
        await self.page.get_by_role("link", name=re.compile(f"Sign in as {person}")).click()
        await self.page.wait_for_url(self.origin + "/**")

    async def links(self) -> list[str]:
        """Return the paths of the links to pages of the console."""
        found: list[str] = await self.page.eval_on_selector_all(
            "a[href]", "all => all.filter(a => !a.download).map(a => a.href)"
        )
        inside = [URL(each) for each in found if each.startswith(f"{self.origin}/")]
        return [each.path_qs for each in inside]

    async def check(self) -> None:
        """Check that no foreign script ran, and that it is accessible, on a phone and dark too."""
        where = self.page.url
        assert await self.page.evaluate("window.attacked") is None, f"a script ran on {where}"
        assert self.faults == [], f"{where}: {self.faults}"
        await self._is_accessible("light")
        before = self.page.viewport_size
        assert before is not None
        await self.page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
        wide = await self.page.evaluate(_TOO_WIDE)
        assert wide == [], f"too wide for a phone: {where}: {wide}"
        await self._is_accessible("dark")
        await self.page.set_viewport_size(before)

    async def _is_accessible(self, scheme: Any) -> None:
        await self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        findings = await serious_findings(self.page)
        assert findings == [], f"{scheme}: {self.page.url}: {findings}"


@asynccontextmanager
async def window(
    browser: Browser, origin: str, *, session: str | None = None, **options: Any
) -> AsyncIterator[Window]:
    """Yield a window of a new profile; with a session cookie it is signed in."""
    given = {"timezone_id": BERLIN, "viewport": {"width": DESKTOP[0], "height": DESKTOP[1]}}
    context = await browser.new_context(**(given | options))
    try:
        await context.add_cookies([{"name": ZONE_COOKIE, "value": BERLIN, "url": origin}])
        if session is not None:
            await plant(context, origin, session)
        yield await another(context, origin)
    finally:
        await context.close()


async def plant(context: BrowserContext, origin: str, session: str) -> None:
    """Give a profile the cookie of a session."""
    # Chromium sends `Secure` cookies to 127.0.0.1 without TLS too, but plants them for https only.
    url = origin.replace("http:", "https:")
    cookie: Any = {"name": SESSION_COOKIE, "value": session, "url": url, "secure": True}
    await context.add_cookies([cookie])


async def another(context: BrowserContext, origin: str) -> Window:
    """Open one more window of a profile."""
    page = await context.new_page()
    opened = Window(page, origin)

    async def dismiss(dialog: Dialog) -> None:
        opened.faults.append(f"dialog: {dialog.message}")
        await dialog.dismiss()

    def logged(message: Any) -> None:
        # Chromium also logs the status of error pages, which tests open on purpose.
        if message.type == "error" and "Failed to load resource" not in message.text:
            opened.faults.append(message.text)

    page.on("dialog", dismiss)
    page.on("console", logged)
    page.on("pageerror", lambda error: opened.faults.append(str(error)))
    return opened


async def serious_findings(page: Page) -> list[str]:
    """Return the serious findings of axe-core on a page."""
    results = await Axe().run(page)
    return [
        f"{finding['id']} at {node['target']}: {node['html'][:200]} {_cause(node)}"
        for finding in results.response["violations"]
        if finding["impact"] in _SERIOUS
        for node in finding["nodes"]
    ]


def _cause(node: dict[str, Any]) -> Sequence[str]:
    return [each["message"] for each in node["any"] + node["all"] + node["none"]]


# The elements that make the document wider than the screen.
_TOO_WIDE: Final = """() => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width) return [];
  return [...document.querySelectorAll("body *")]
    .filter(each => each.getBoundingClientRect().right > width + 1 && !each.closest(".scroll *"))
    .map(each => each.outerHTML.slice(0, 150)).concat("scrolls sideways");
}"""
