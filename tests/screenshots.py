"""Screenshots of the console for its docs: `python -m tests.screenshots CONSOLE [DIRECTORY]`.

CONSOLE is the URL that `ringback up` prints, after its demonstration. Chromium must be installed.
"""

import asyncio
import re
from pathlib import Path
from typing import Final

import click

from tests.fakes.chromium import Window, chromium, window

IMAGES: Final = Path(__file__).parents[1] / "docs" / "images"
# Images of a page in the docs are at most this wide, and never larger than 150 kB.
SIZE: Final = {"width": 1100, "height": 720}
MAX_BYTES: Final = 150_000


async def _first_link(opened: Window, page: str, path: str) -> str:
    """Return the first link on a page whose path begins like this."""
    await opened.open(page)
    links = [link for link in await opened.links() if re.match(path, link)]
    if not links:
        raise click.ClickException(f"Cannot find {path} on {page}: run `ringback up` first.")
    return links[0]


async def _save(opened: Window, path: str, file: Path) -> None:
    """Save a page as an image."""
    await opened.open(path)
    image: bytes = await opened.page.screenshot(path=file, animations="disabled")
    if len(image) > MAX_BYTES:
        raise click.ClickException(f"Cannot use {file}: it has {len(image)} bytes. Crop it.")
    click.echo(f"{file} {len(image) // 1000} kB")


async def _take(console: str, directory: Path) -> None:
    async with (
        chromium() as browser,
        window(browser, console, viewport=SIZE, color_scheme="light") as opened,
    ):
        await opened.sign_in("Ada")
        callback = await _first_link(opened, "/attempts?status=failed", r"/callbacks/one\?id=demo")
        mailing = await _first_link(
            opened, "/mailings?status=cancelled", r"/mailings/[0-9a-f-]{36}$"
        )
        pages = {
            "overview": "/",
            "callback": callback,
            "attempts": "/attempts",
            "dead-letters": "/dead-letters/callbacks",
            "targets": "/targets",
            "mailing": mailing,
        }
        for name, path in pages.items():
            await _save(opened, path, directory / f"console-{name}.png")
        await opened.page.emulate_media(color_scheme="dark")
        await _save(opened, "/", directory / "console-overview-dark.png")


@click.command
@click.argument("console")
@click.argument("directory", type=click.Path(path_type=Path), default=IMAGES)
def screenshots(console: str, directory: Path) -> None:
    """Save images of the pages of CONSOLE in DIRECTORY, docs/images by default."""
    asyncio.run(_take(console.rstrip("/"), directory))


if __name__ == "__main__":
    screenshots()
