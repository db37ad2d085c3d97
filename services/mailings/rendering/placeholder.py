"""Where values stand: marks that go through Markdown in the place of values, and their filling.

A value is never Markdown and never HTML, because it is not there when these are read.
"""

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final
from urllib.parse import quote

from yarl import URL

from services.mailings.rendering.markdown import URL_BEGINS, URL_ENDS

# A word that Markdown leaves alone wherever it stands, and that no template can hold.
_SECRET: Final = secrets.token_hex(8)
_MARK: Final = re.compile(f"m{_SECRET}([vs])([0-9]+)e")
_TAG: Final = re.compile(r'</?[a-z](?:[^">]|"[^"]*")*>')
_LINK: Final = re.compile(r' (href|src)="([^"]*)"')
_URL_IN_TEXT: Final = re.compile(f"{URL_BEGINS}([^{URL_ENDS}]*){URL_ENDS}")
# What needs no rewriting: an absolute URL in ASCII.
_PLAIN_URL: Final = re.compile(r"(?:https?://|mailto:)[A-Za-z0-9._~:/?#\[\]@!$()*+,;=%&-]+")
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")

Values = Sequence[str]
"""The values of slots, by their numbers."""
Fill = Callable[[Values], str]
_Url = Callable[[Values], str | None]


def mark_of_value(number: int) -> str:
    """The mark of a value that is the same for all users of a shape."""
    return f"m{_SECRET}v{number}e"


def mark_of_slot(number: int) -> str:
    """The mark of a value that each user has."""
    return f"m{_SECRET}s{number}e"


def clean(value: str) -> str:
    """The value without what no mail can hold: control characters, halves of characters."""
    return value if value.isprintable() else _CONTROL.sub("\ufffd", value)


class Filled:
    """A text, some parts of which wait for the values of slots."""

    def __init__(self, parts: Sequence[str | Fill]) -> None:
        self._parts: list[str] = []
        self._holes: list[tuple[int, Fill]] = []
        for part in parts:
            if not isinstance(part, str):
                self._holes.append((len(self._parts), part))
                self._parts.append("")
            elif self._parts and not (self._holes and self._holes[-1][0] == len(self._parts) - 1):
                self._parts[-1] += part
            else:
                self._parts.append(part)

    def of(self, slots: Values) -> str:
        """The whole text for these values."""
        parts = self._parts.copy()
        for place, fill in self._holes:
            parts[place] = fill(slots)
        return "".join(parts)


@dataclass(frozen=True, slots=True)
class _Reference:
    """What a mark stands for: a slot, or a value that is known."""

    slot: int | None
    value: str = ""

    def of(self, slots: Values) -> str:
        return self.value if self.slot is None else slots[self.slot]


def in_line(text: str, known: Values) -> Filled:
    """A text in which values stand as they are."""
    return Filled(_in_place(text, known, str))


def in_text(text: str, known: Values) -> Filled:
    """A document's plain text: values as they are, URLs in angle brackets, or left out."""
    parts: list[str | Fill] = []
    for number, piece in enumerate(_URL_IN_TEXT.split(text)):
        if number % 2:
            parts.append(_settled(piece, _in_brackets(_url(piece, known, str))))
        else:
            parts += _in_place(piece, known, str)
    return Filled(parts)


def in_html(html: str, known: Values) -> Filled:
    """A document's HTML, in which values stand as text, or as parts of URLs.

    A link that begins with a value which is no URL of the web or a mailbox is left out, its text
    stays; an image likewise.
    """
    parts: list[str | Fill] = []
    end = 0
    closing: str | Fill | None = None
    for tag in _TAG.finditer(html):
        parts += _in_place(html[end : tag.start()], known, escape)
        end = tag.end()
        link = _LINK.search(tag[0])
        if tag[0] == "</a>" and closing is not None:
            parts.append(closing)
            closing = None
        elif link is not None and _MARK.search(link[2]):
            url = _url(link[2], known, escape)
            parts.append(_settled(tag[0], _tag(tag[0], link, url, known)))
            if tag[0].startswith("<a "):
                closing = _settled(link[2], _closing(url))
        else:
            parts += _in_place(tag[0], known, escape)
    return Filled(parts + _in_place(html[end:], known, escape))


def _tag(tag: str, link: re.Match[str], url: _Url, known: Values) -> Fill:
    before = Filled(_in_place(tag[: link.start(2)], known, escape))
    after = Filled(_in_place(tag[link.end(2) :], known, escape))

    def fill(slots: Values) -> str:
        written = url(slots)
        return "" if written is None else before.of(slots) + written + after.of(slots)

    return fill


def _closing(url: _Url) -> Fill:
    return lambda slots: "" if url(slots) is None else "</a>"


def _in_brackets(url: _Url) -> Fill:
    def fill(slots: Values) -> str:
        written = url(slots)
        return "" if written is None else f" <{written}>"

    return fill


def _settled(text: str, fill: Fill) -> str | Fill:
    """What is filled into this text: done at once, if no slot stands in it."""
    return fill if any(mark[1] == "s" for mark in _MARK.finditer(text)) else fill(())


def _split(text: str, known: Values) -> list[str | _Reference]:
    """Texts and what stands between them."""
    parts: list[str | _Reference] = []
    end = 0
    for mark in _MARK.finditer(text):
        parts.append(text[end : mark.start()])
        number = int(mark[2])
        parts.append(_Reference(None, known[number]) if mark[1] == "v" else _Reference(number))
        end = mark.end()
    parts.append(text[end:])
    return [part for part in parts if part != ""]


def _in_place(text: str, known: Values, write: Callable[[str], str]) -> list[str | Fill]:
    """The text in parts, each value written as it has to be in this place."""
    return [
        part if isinstance(part, str) else _written(part, write) for part in _split(text, known)
    ]


def _written(value: _Reference, write: Callable[[str], str]) -> str | Fill:
    slot = value.slot
    return write(value.value) if slot is None else lambda slots: write(slots[slot])


def _url(text: str, known: Values, write: Callable[[str], str]) -> _Url:
    """The URL in this text; None if it begins with a value that is no URL."""
    split = _split(text, known)

    def url(slots: Values) -> str | None:
        written = []
        for number, part in enumerate(split):
            if isinstance(part, str):
                written.append(part)
            elif number:
                written.append(quote(part.of(slots), safe=""))
            else:
                beginning = _absolute(part.of(slots))
                if beginning is None:
                    return None
                written.append(write(beginning))
        return "".join(written)

    return url


def _absolute(value: str) -> str | None:
    """The value as a URL in ASCII, if it is one that a message may link to."""
    if _PLAIN_URL.fullmatch(value):
        return value
    try:
        url = URL(value)
    except ValueError:
        return None
    if url.scheme == "mailto" or (url.scheme in ("http", "https") and url.host):
        return quote(str(url), safe="/:?#[]@!$&'()*+,;=%~")
    return None
