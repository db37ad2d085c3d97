"""The frame of all pages. Each page is one HTML document that loads nothing else."""

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

_STYLE = Path(__file__).with_name("page.css").read_text()
_SCRIPT = Path(__file__).with_name("page.js").read_text()
_PAGES = {
    "/": "Webhooks",
    "/mails": "Mails",
    "/sms": "SMS",
    "/producers": "Producers",
    "/oidc": "Sign-in",
}


def _hash(inline: str) -> str:
    digest = hashlib.sha256(inline.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    # Received data is escaped. Even if an escape were missing, a script could not run.
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; "
        "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
}


def page_html(main: str, *, here: str, json: Sequence[str] = ()) -> bytes:
    """Return a whole page.

    Args:
        main: the HTML of this page, with received data escaped.
        here: the path of this page in the navigation.
        json: the paths of the same data as JSON.
    """
    links = " ".join(
        f"<a href='{path}'{' aria-current=page' if path == here else ''}>{name}</a>"
        for path, name in _PAGES.items()
    )
    sources = ", ".join(f"<a href='{escape(path)}'>{escape(path)}</a>" for path in json)
    html = f"""<!doctype html>
<html lang=en>
<head>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<title>{_PAGES[here]} · Ringback sandbox</title>
<noscript><meta http-equiv=refresh content=3></noscript>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1><a href="/">Ringback sandbox</a></h1>
<p>Simulates the outside world and shows what Ringback sends.</p>
<nav>{links}</nav>
</header>
<main>
{main}
<footer>{f"As JSON: {sources}. " if sources else ""}Times are UTC.</footer>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""
    # UTF-8 cannot encode a lone surrogate, such as "\ud800" in a JSON body: show its escape.
    return html.encode(errors="backslashreplace")


def tag(text: str, kind: str) -> str:
    """Return a small label; kind is good, bad, odd or empty."""
    return f"<span class='tag {kind}'>{escape(text)}</span>"


def time_of_day(at: float) -> str:
    """Return the time of day of a Unix time."""
    iso = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return f"<time datetime='{iso}' title='{iso}'>{iso[11:23]}</time>"
