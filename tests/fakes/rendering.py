"""Templates made from texts, and a parser for the rendered HTML."""

import json
from html.parser import HTMLParser
from typing import Any

from services.mailings.rendering.bound_template import BoundTemplate
from services.mailings.rendering.formats import Rendered
from services.mailings.rendering.loader import parse_template


def bind(
    body: str,
    *,
    subject: str = "S",
    channel: str = "email",
    name: str = "email/x.md",
    **context: Any,
) -> BoundTemplate:
    """Bind a template to its context. The body of an e-mail begins in line 4."""
    head = f"---\nsubject: {json.dumps(subject)}\n---\n" if channel == "email" else ""
    return BoundTemplate(parse_template(name, head + body), channel, context, "Shop")


def rendered(
    body: str, user: dict[str, Any] | None = None, *, url: str | None = None, **options: Any
) -> Rendered:
    """Render a template for one recipient."""
    return bind(body, **options).render(user or {}, unsubscribe_url=url)


class ParsedHtml(HTMLParser):
    """The elements, links and text of an HTML document."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []
        self.titles: list[str] = []
        self.text = ""
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
        self.text += data
