"""Templates from texts, and what HTML shows."""

import json
from html.parser import HTMLParser
from typing import Any

from services.mailings.rendering.bound_template import BoundTemplate, Rendered
from services.mailings.rendering.loader import read


def edition(
    body: str,
    *,
    subject: str = "S",
    channel: str = "email",
    name: str = "email/x.md",
    **context: Any,
) -> BoundTemplate:
    """An edition of a template; an e-mail's body begins in line 4."""
    head = f"---\nsubject: {json.dumps(subject)}\n---\n" if channel == "email" else ""
    return BoundTemplate(read(name, head + body), channel, context, "Shop")


def rendered(
    body: str, user: dict[str, Any] | None = None, *, url: str | None = None, **options: Any
) -> Rendered:
    """What a user gets of a template."""
    return edition(body, **options).render(user or {}, unsubscribe_url=url)


class Shown(HTMLParser):
    """What a mail program makes of HTML: elements, links, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []
        self.titles: list[str] = []
        self.words = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        for name, value in attrs:
            if name in ("href", "src"):
                self.links.append(value or "")
            if name in ("title", "alt"):
                self.titles.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words += data
