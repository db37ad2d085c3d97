"""Placeholders: they pass through Markdown in place of values, which replace them afterwards.

A value is never parsed as Markdown or HTML, because it is inserted after the conversion.
"""

import re
import secrets
from collections.abc import Callable, Sequence
from html import escape
from operator import itemgetter
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from yarl import URL

from services.mailings.rendering.markdown import URL_BEGINS, URL_ENDS

# A word that Markdown never changes and that no template can contain.
_SECRET: Final = secrets.token_hex(8)
_PLACEHOLDER: Final = re.compile(f"m{_SECRET}n([0-9]+)e")
_ATTRIBUTES: Final = r'(?:[^">]|"[^"]*")*'
# The groups: before the URL, the URL, after the URL, the content of a link.
_LINK: Final = re.compile(
    rf'(<a{_ATTRIBUTES}? href=")([^"]*)("{_ATTRIBUTES}>)(.*?)</a>'
    rf'|(<img{_ATTRIBUTES}? src=")([^"]*)("{_ATTRIBUTES}>)',
    re.DOTALL,
)
_URL_IN_TEXT: Final = re.compile(f"{URL_BEGINS}([^{URL_ENDS}]*){URL_ENDS}")
# An absolute URL in ASCII, which needs no quoting.
_PLAIN_URL: Final = re.compile(r"(?:https?://|mailto:)[A-Za-z0-9._~:/?#\[\]@!$()*+,;=%&-]+")
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")

# Characters of a filled part that is kept for the next message. A template has up to 64 shapes, and
# each would keep a text of a megabyte for a hostile value.
MAX_KEPT: Final = 10_000

# The values of the placeholders, by number.
Values = Sequence[str]
Fill = Callable[[Values], str]


def placeholder(number: int) -> str:
    """Return the placeholder of a value."""
    return f"m{_SECRET}n{number}e"


def clean(value: str) -> str:
    """Replace the characters that no mail can contain: control characters and surrogates."""
    return value if value.isprintable() else _CONTROL.sub("\ufffd", value)


class Part(NamedTuple):
    """A part of a text that depends on values.

    select: returns the values that it depends on.
    """

    select: Callable[[Values], Any]
    fill: Fill


class PlaceholderText:
    """A text in which values replace the placeholders.

    A part is filled again only if its values changed since the previous message, or if it is long:
    the values of the context are the same for every recipient.
    """

    def __init__(self, parts: Sequence[str | Part]) -> None:
        self._parts = [part if isinstance(part, str) else "" for part in parts]
        self._fills = [(n, *part) for n, part in enumerate(parts) if not isinstance(part, str)]
        self._previous: dict[int, tuple[Any, str]] = {n: (None, "") for n, _, _ in self._fills}

    def fill(self, values: Values) -> str:
        """Return the text with these values."""
        parts = self._parts.copy()
        for number, select, fill in self._fills:
            selected = select(values)
            previous, text = self._previous[number]
            if selected != previous:
                text = fill(values)
                if len(text) <= MAX_KEPT:
                    self._previous[number] = selected, text
            parts[number] = text
        return "".join(parts)


def in_line(text: str) -> PlaceholderText:
    """Return a text in which values are inserted unchanged."""
    return PlaceholderText(_parts(text))


def in_text(text: str) -> PlaceholderText:
    """Return the plain text of a document: URLs are in angle brackets, invalid ones are omitted."""
    parts: list[str | Part] = []
    for number, piece in enumerate(_URL_IN_TEXT.split(text)):
        if number % 2:
            parts.append(_part(piece, _in_brackets(piece)))
        else:
            parts += _parts(piece)
    return PlaceholderText(parts)


def in_html(html: str) -> PlaceholderText:
    """Return the HTML of a document: values are escaped, or percent-encoded in URLs.

    If a value begins a URL, it must be an absolute URL. Otherwise the link is removed and its
    text stays; an image is removed.
    """
    return PlaceholderText(_html_parts(html))


def _html_parts(html: str) -> list[str | Part]:
    parts: list[str | Part] = []
    end = 0
    for link in _LINK.finditer(html):
        parts += _parts(html[end : link.start()], escape)
        end = link.end()
        parts.append(_part(link[0], _link(link)))
    return parts + _parts(html[end:], escape)


def _link(link: re.Match[str]) -> Fill:
    is_image = link[5] is not None
    before, url_text, after = link.group(5, 6, 7) if is_image else link.group(1, 2, 3)
    opening = PlaceholderText(_parts(before, escape))
    closing = PlaceholderText(_parts(after, escape))
    content = PlaceholderText([] if is_image else _html_parts(link[4]))
    end = "" if is_image else "</a>"
    url = _url(url_text, escape)

    def fill(values: Values) -> str:
        inner = content.fill(values)
        written = url(values)
        if written is None:
            return inner
        return f"{opening.fill(values)}{written}{closing.fill(values)}{inner}{end}"

    return fill


def _in_brackets(text: str) -> Fill:
    url = _url(text, str)

    def fill(values: Values) -> str:
        written = url(values)
        return "" if written is None else f" <{written}>"

    return fill


def _parts(text: str, write: Callable[[str], str] = str) -> list[str | Part]:
    """Split a text at its placeholders; `write` escapes a value."""
    return [
        _value(int(piece), write) if number % 2 else piece
        for number, piece in enumerate(_PLACEHOLDER.split(text))
    ]


def _value(number: int, write: Callable[[str], str]) -> Part:
    return Part(itemgetter(number), lambda values: write(values[number]))


def _part(text: str, fill: Fill) -> str | Part:
    """Return what `fill` makes of a text and the values of the placeholders in it."""
    numbers = [int(number) for number in _PLACEHOLDER.findall(text)]
    return Part(itemgetter(*numbers), fill) if numbers else fill(())


def _url(text: str, write: Callable[[str], str]) -> Callable[[Values], str | None]:
    """Return a function that fills a URL; None if the URL begins with an invalid value."""
    pieces = _PLACEHOLDER.split(text)

    def fill(values: Values) -> str | None:
        written = [pieces[0]]
        for place in range(1, len(pieces), 2):
            value = values[int(pieces[place])]
            if place == 1 and not pieces[0]:
                beginning = _absolute(value)
                if beginning is None:
                    return None
                written.append(write(beginning))
            else:
                written.append(quote(value, safe=""))
            written.append(pieces[place + 1])
        return "".join(written)

    return fill


def _absolute(value: str) -> str | None:
    """Return the value as a URL in ASCII, if a message may link to it."""
    if _PLAIN_URL.fullmatch(value):
        return value
    try:
        url = URL(value)
    except ValueError:
        return None
    if url.scheme == "mailto" or (url.scheme in ("http", "https") and url.host):
        return quote(str(url), safe="/:?#[]@!$&'()*+,;=%~")
    return None
