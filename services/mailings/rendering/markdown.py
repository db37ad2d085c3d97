"""Markdown as HTML and as plain text to read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token

_MARKDOWN: Final = MarkdownIt("commonmark", {"html": False}).enable("strikethrough")
# Everything that Markdown makes, and nothing else.
_CLEANER: Final = nh3.Cleaner(
    tags={f"h{level}" for level in range(1, 7)}
    | {
        "p",
        "a",
        "img",
        "em",
        "strong",
        "s",
        "ul",
        "ol",
        "li",
        "blockquote",
        "pre",
        "code",
        "hr",
        "br",
    },
    attributes={"a": {"href", "title"}, "img": {"src", "alt", "title"}, "ol": {"start"}},
    allowed_classes={"a": {"button"}},
    url_schemes={"http", "https", "mailto"},
    link_rel=None,
)
# Around a URL in the plain text.
URL_BEGINS: Final = "\x02"
URL_ENDS: Final = "\x03"


@dataclass(frozen=True, slots=True)
class Document:
    """One Markdown document in its three forms; `opening` is the text of its first paragraph.

    In `text`, a link's URL follows its text, between URL_BEGINS and URL_ENDS.
    """

    html: str
    text: str
    opening: str


def document(markdown: str) -> Document:
    """Read it."""
    tokens = _MARKDOWN.parse(markdown)
    opening = ""
    for before, token in pairwise(tokens):
        if before.type != "paragraph_open" or before.level or token.children is None:
            continue
        if _is_button(token.children):
            token.children[0].attrSet("class", "button")
        elif not opening:
            opening = _words(token.children, links=False)
    html = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    writer = _Writer()
    for token in tokens:
        writer.write(token)
    return Document(_CLEANER.clean(html), "\n".join(writer.lines), opening)


def _is_button(children: Sequence[Token]) -> bool:
    """A paragraph that is one link, and has a text of its own, becomes a button."""
    return (
        children[0].type == "link_open"
        and children[0].markup != "autolink"
        and [each.type for each in children].index("link_close") == len(children) - 1
        and not any(each.type == "image" for each in children)
    )


@dataclass
class _Writer:
    """Writes blocks as lines, with what stands before them in lists and quotes."""

    lines: list[str] = field(default_factory=list)
    _before: list[str] = field(default_factory=list)
    _first: str | None = None  # what stands before the next line only
    _numbers: list[int | None] = field(default_factory=list)
    _hidden: bool = False
    _tight: bool = False

    def write(self, token: Token) -> None:
        """Go on with the next token."""
        match token.type:
            case "bullet_list_open" | "ordered_list_open":
                bullet = token.type == "bullet_list_open"
                self._numbers.append(None if bullet else int(token.attrs.get("start", 1)))
            case "bullet_list_close" | "ordered_list_close":
                self._numbers.pop()
            case "list_item_open":
                self._item()
            case "blockquote_open":
                self._before.append("> ")
            case "list_item_close" | "blockquote_close":
                self._before.pop()
                self._first = None
            case "paragraph_open":
                self._hidden = token.hidden
            case "inline":
                self._block(_words(token.children or ()).split("\n"), tight=self._hidden)
                self._hidden = False
            case "fence" | "code_block":
                self._block(["    " + line for line in token.content.splitlines()])
            case "hr":
                self._block(["---"])

    def _item(self) -> None:
        number = self._numbers[-1]
        if number is not None:
            self._numbers[-1] = number + 1
        marker = "- " if number is None else f"{number}. "
        self._first = ("".join(self._before) if self._first is None else self._first) + marker
        self._before.append(" " * len(marker))

    def _block(self, lines: Sequence[str], *, tight: bool = False) -> None:
        if self.lines and not (tight and self._tight):
            self.lines.append("")
        self._tight = tight
        before = "".join(self._before)
        for line in lines:
            self.lines.append((before if self._first is None else self._first) + line)
            self._first = None


def _words(children: Sequence[Token], *, links: bool = True) -> str:
    said: list[str] = []
    begun: list[tuple[int, str]] = []
    for token in children:
        match token.type:
            case "text" | "code_inline" | "text_special" | "image":
                said.append(token.content)
            case "softbreak":
                said.append(" ")
            case "hardbreak":
                said.append("\n" if links else " ")
            case "link_open":
                begun.append((len(said), str(token.attrs["href"])))
            case "link_close":
                place, url = begun.pop()
                label = "".join(said[place:])
                if links and token.markup != "autolink" and label != url:
                    said.append(f"{URL_BEGINS}{url}{URL_ENDS}")
    return "".join(said)
