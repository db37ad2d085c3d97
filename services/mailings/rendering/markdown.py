"""Converts Markdown to HTML and to readable plain text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token

_MARKDOWN: Final = MarkdownIt("commonmark", {"html": False}).enable("strikethrough")
# Exactly the elements that Markdown produces.
_CLEANER: Final = nh3.Cleaner(
    tags={"h1", "h2", "h3", "h4", "h5", "h6", "p", "a", "img", "em", "strong", "s"}
    | {"ul", "ol", "li", "blockquote", "pre", "code", "hr", "br"},
    attributes={"a": {"href", "title"}, "img": {"src", "alt", "title"}, "ol": {"start"}},
    allowed_classes={"a": {"button"}},
    url_schemes={"http", "https", "mailto"},
    link_rel=None,
)
# These characters enclose a URL in the plain text.
URL_BEGINS: Final = "\x02"
URL_ENDS: Final = "\x03"


@dataclass(frozen=True, slots=True)
class Document:
    """A Markdown document as HTML and as plain text.

    text: the plain text. A link's URL follows its label, between URL_BEGINS and URL_ENDS.
    opening: the text of the first paragraph.
    """

    html: str
    text: str
    opening: str


def parse_markdown(markdown: str) -> Document:
    """Convert a Markdown document."""
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
    writer = _TextWriter()
    for token in tokens:
        writer.write(token)
    return Document(_CLEANER.clean(html), "\n".join(writer.lines), opening)


def _is_button(children: Sequence[Token]) -> bool:
    """Return whether a paragraph consists of one labelled link, which becomes a button."""
    return (
        children[0].type == "link_open"
        and children[0].markup != "autolink"
        and [child.type for child in children].index("link_close") == len(children) - 1
        and not any(child.type == "image" for child in children)
    )


@dataclass
class _TextWriter:
    """Writes blocks as lines, with the prefixes of the lists and quotes around them."""

    lines: list[str] = field(default_factory=list)
    _prefixes: list[str] = field(default_factory=list)
    _first_prefix: str | None = None  # replaces the prefixes of the next line
    _numbers: list[int | None] = field(default_factory=list)
    _hidden: bool = False  # inside a paragraph of a tight list
    _tight: bool = False  # after such a paragraph

    def write(self, token: Token) -> None:
        """Write the next token."""
        match token.type:
            case "bullet_list_open" | "ordered_list_open":
                bullet = token.type == "bullet_list_open"
                self._numbers.append(None if bullet else int(token.attrs.get("start", 1)))
            case "bullet_list_close" | "ordered_list_close":
                self._numbers.pop()
            case "list_item_open":
                self._item()
            case "blockquote_open":
                self._prefixes.append("> ")
            case "list_item_close" | "blockquote_close":
                self._prefixes.pop()
                self._first_prefix = None
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
        self._first_prefix = (
            "".join(self._prefixes) if self._first_prefix is None else self._first_prefix
        ) + marker
        self._prefixes.append(" " * len(marker))

    def _block(self, lines: Sequence[str], *, tight: bool = False) -> None:
        if self.lines and not (tight and self._tight):
            self.lines.append("")
        self._tight = tight
        prefix = "".join(self._prefixes)
        for line in lines:
            self.lines.append((prefix if self._first_prefix is None else self._first_prefix) + line)
            self._first_prefix = None


def _words(children: Sequence[Token], *, links: bool = True) -> str:
    words: list[str] = []
    open_links: list[tuple[int, str]] = []
    for token in children:
        match token.type:
            case "text" | "code_inline" | "text_special" | "image":
                words.append(token.content)
            case "softbreak":
                words.append(" ")
            case "hardbreak":
                words.append("\n" if links else " ")
            case "link_open":
                open_links.append((len(words), str(token.attrs["href"])))
            case "link_close":
                place, url = open_links.pop()
                label = "".join(words[place:])
                if links and token.markup != "autolink" and label != url:
                    words.append(f"{URL_BEGINS}{url}{URL_ENDS}")
    return "".join(words)
