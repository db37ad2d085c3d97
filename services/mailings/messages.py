"""From a user to his messages, or to the reasons why he gets none."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import UUID

from pydantic import ValidationError

from services.mailings.domain import Skip, address, message_id, stored, user_id
from services.mailings.rendering.bound_template import BoundTemplate, RenderingError
from services.mailings.rendering.formats import FORMATS
from services.mailings.store import Row
from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, new_id
from shared.contracts import headers
from shared.contracts.context import field_errors
from shared.registry import CHANNELS, Channel


@dataclass(frozen=True, slots=True)
class Addressee:
    """An item of a page: a user by his id; or what is none, and why, by its place."""

    id: str
    user: Mapping[str, Any]
    fault: str | None

    @classmethod
    def of(cls, item: Any, place: str) -> "Addressee":
        """The item at a place such as `page 3, item 7`."""
        found = user_id(item)
        return cls(place, {}, found.why) if isinstance(found, Skip) else cls(found, item, None)


class Draft(NamedTuple):
    """A message that is ready to go out."""

    id: UUID
    channel: Channel
    body: bytes


class Composer:
    """Writes the messages of one posting: an edition and a kind of notification for each way."""

    def __init__(
        self,
        posting_id: UUID,
        expires_at: datetime | None,
        editions: Mapping[str, tuple[BoundTemplate, str]],
        unsubscribe_url: str | None,
    ) -> None:
        self._posting_id = posting_id
        self._editions = editions
        self._unsubscribe_url = unsubscribe_url
        self._common: dict[str, Any] = {"posting_id": str(posting_id), "expires_at": expires_at}

    def compose(self, to: Addressee) -> Iterator[tuple[Row, Draft | None]]:
        """A row for each way, with the message unless there is a reason against it."""
        for name, (edition, kind) in self._editions.items():
            channel = CHANNELS[name]
            message = message_id(self._posting_id, name, to.id)
            body = to.fault or self._body(message, to, channel, edition, kind)
            if isinstance(body, str):
                yield Row(message, to.id, name, stored(body)), None
            else:
                yield Row(message, to.id, name, None), Draft(message, channel, body)

    def _body(
        self, message: UUID, to: Addressee, channel: Channel, edition: BoundTemplate, kind: str
    ) -> bytes | str:
        """The body, or why there is none."""
        where = address(to.user, channel, kind)
        if isinstance(where, Skip):
            return where.why
        try:
            form = FORMATS[channel.name]
            url = self._unsubscribe(to.id, kind) if form.has_html else None
            content = form.fields(edition.render(to.user, unsubscribe_url=url), url)
            fields: dict[str, Any] = {"id": str(message), "user_id": to.id, channel.address: where}
            model = channel.contract(**fields, **self._common, **content)
        except RenderingError as error:
            return str(error)
        except ValidationError as error:
            fault = field_errors(error)[0]
            return f"{fault.field}: {fault.message}"
        return model.__pydantic_serializer__.to_json(model, exclude_none=True)

    def _unsubscribe(self, user: str, kind: str) -> str | None:
        if self._unsubscribe_url is None:
            return None
        url = self._unsubscribe_url.replace("{kind}", quote(kind, safe=""))
        return url.replace("{user_id}", quote(user, safe=""))


def outgoing(draft: Draft, traceparent: str | None, now: float) -> OutgoingMessage:
    """The AMQP message for a draft, with a fresh message_id and the draft's own id."""
    ours = {headers.ID: str(draft.id)}
    if traceparent is not None:
        ours[headers.TRACEPARENT] = traceparent
    return OutgoingMessage(
        draft.channel.queue,
        Properties(
            content_type="application/json",
            headers=ours,
            delivery_mode=PERSISTENT,
            message_id=new_id(),
            timestamp=int(now),
            type=draft.channel.type,
            app_id="ringback",
        ),
        draft.body,
    )
