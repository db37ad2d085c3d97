"""The format of messages on each channel. A new channel needs an entry in FORMATS."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple


class Rendered(NamedTuple):
    """A message for one recipient. A plain text has no subject and no HTML."""

    subject: str
    text: str
    html: str | None


@dataclass(frozen=True, slots=True)
class Format:
    """The format of messages on a channel.

    has_html: whether a message has a subject and HTML; otherwise it is a plain text.
    max_size: characters of the text, and of the HTML.
    fields: returns the fields of the channel's contract for a message and an unsubscribe URL.
    """

    has_html: bool
    max_size: int
    fields: Callable[[Rendered, str | None], Mapping[str, Any]]


def _email(message: Rendered, unsubscribe_url: str | None) -> Mapping[str, Any]:
    return {**message._asdict(), "unsubscribe_url": unsubscribe_url}


def _text(message: Rendered, _: str | None) -> Mapping[str, Any]:
    return {"text": message.text}


FORMATS: Final[Mapping[str, Format]] = {
    # Mail programs clip messages of a tenth of this size.
    "email": Format(has_html=True, max_size=262_144, fields=_email),
    # Ten parts of an SMS; the contract SendSms has the same limit.
    "sms": Format(has_html=False, max_size=1_600, fields=_text),
}
