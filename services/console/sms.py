"""The number of segments of an SMS, which providers charge. Pure."""

from dataclasses import dataclass
from typing import Final

# The default alphabet of GSM 03.38, and the characters of its extension, which count twice.
_BASIC: Final = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡"
    "ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_EXTENDED: Final = frozenset("\f^{}\\[~]|€")


@dataclass(frozen=True, slots=True)
class Segments:
    """How a text is sent. characters: as the encoding counts them."""

    characters: int
    count: int
    encoding: str


def segments(text: str) -> Segments:
    """Return the segments of a text: GSM-7 if all characters permit it, otherwise UCS-2."""
    used = set(text)
    if used <= _BASIC | _EXTENDED:
        length = len(text) + sum(character in _EXTENDED for character in text)
        return Segments(length, _count(length, 160, 153), "GSM-7")
    length = len(text.encode("utf-16-be", errors="surrogatepass")) // 2
    return Segments(length, _count(length, 70, 67), "UCS-2")


def _count(length: int, alone: int, joined: int) -> int:
    """Return the number of segments. Several of them need a header each."""
    return 1 if length <= alone else -(-length // joined)
