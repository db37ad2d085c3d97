"""Converts messages with placeholders from Markdown, and keeps the converted ones."""

from dataclasses import dataclass
from typing import Final

from services.mailings.rendering.formats import Format
from services.mailings.rendering.frame import Frame
from services.mailings.rendering.markdown import URL_BEGINS, URL_ENDS, parse_markdown
from services.mailings.rendering.placeholder import PlaceholderText, in_html, in_line, in_text

# Characters of the messages whose shapes are kept. A message of five movies has 5,000. A
# shape takes up to 110 bytes for each character, if the message consists of links.
MAX_KEPT_SIZE: Final = 400_000

_EMPTY: Final = PlaceholderText(())


@dataclass(frozen=True, slots=True)
class Shape:
    """A converted message with placeholders."""

    subject: PlaceholderText
    text: PlaceholderText
    html: PlaceholderText | None


@dataclass(frozen=True, slots=True)
class Conversion:
    """What the messages of a template have in common."""

    format: Format
    product: str
    is_markdown: bool
    frame: Frame
    language: str | None


# The subject, the body and the unsubscribe URL, with placeholders.
Texts = tuple[Conversion, str, str, str]


class ShapeCache:
    """Keeps the shapes that were used last."""

    def __init__(self) -> None:
        self._shapes: dict[Texts, tuple[Shape, int]] = {}  # the last one was used last
        self._size = 0

    def get(self, texts: Texts, size: int) -> Shape:
        """Return the shape of a message of this size."""
        known = texts in self._shapes
        shape, old_size = self._shapes.pop(texts) if known else (convert(*texts), 0)
        self._shapes[texts] = shape, size
        self._size += size - old_size
        while self._size > MAX_KEPT_SIZE and self._shapes:
            _, removed = self._shapes.pop(next(iter(self._shapes)))
            self._size -= removed
        return shape


def convert(conversion: Conversion, subject: str, body: str, unsubscribe: str) -> Shape:
    """Convert texts with placeholders."""
    if not conversion.is_markdown:
        return Shape(_EMPTY, in_line(body), None)
    document = parse_markdown(body)
    if not conversion.format.has_html:
        return Shape(_EMPTY, in_text(document.text), None)
    subject = " ".join(subject.split())
    footer = [f"Unsubscribe{URL_BEGINS}{unsubscribe}{URL_ENDS}"] if unsubscribe else []
    footer += conversion.frame.postal_address
    lines = [document.text, *(("", "---", *footer) if footer else ())]
    html = conversion.frame.render(
        document.html.strip(),
        subject=subject,
        opening=document.opening,
        product=conversion.product,
        unsubscribe=unsubscribe,
        language=conversion.language,
    )
    return Shape(in_line(subject), in_text("\n".join(lines) + "\n"), in_html(html))
