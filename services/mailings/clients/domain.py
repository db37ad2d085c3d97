"""Pure rules of the client directory."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid5

from shared.contracts.clients import PHONE_PATTERN, Client, ClientChange, NewClient
from shared.ids import with_time_of

_NAMESPACE: Final = UUID("2f6f1a52-2f0e-4d0b-8a53-0d4f8a3d3f27")
_PHONE_DIGITS: Final = 11


class Fields(NamedTuple):
    """The fields of a client that its owner sets."""

    phone: str
    operator_code: str
    tag: str | None
    timezone: str


@dataclass(frozen=True, slots=True)
class StoredClient:
    """A client in the directory."""

    id: UUID
    fields: Fields
    version: int
    created_at: datetime
    updated_at: datetime

    @property
    def etag(self) -> str:
        """Return its entity tag."""
        return f'"{self.version}"'

    @property
    def user(self) -> dict[str, Any]:
        """Return the client as texts see it."""
        return {"id": str(self.id), **self.fields._asdict()}

    def matches(self, if_match: Sequence[str] | None) -> bool:
        """Return whether a change with these entity tags may be made; None permits all."""
        return if_match is None or "*" in if_match or self.etag in if_match

    def response(self) -> Client:
        """Return the client as in responses."""
        return Client(
            id=self.id,
            phone=self.fields.phone,
            operator_code=self.fields.operator_code,
            tag=self.fields.tag,
            timezone=self.fields.timezone,
            created_at=self.created_at,
            updated_at=self.updated_at,
            etag=self.etag,
        )


def new_fields(client: NewClient) -> Fields:
    """Return the fields of a new client."""
    operator_code = client.operator_code or operator_code_of(client.phone)
    return Fields(client.phone, operator_code, client.tag, client.timezone)


def changed(fields: Fields, change: ClientChange) -> Fields:
    """Return the fields after a change."""
    given: dict[str, Any] = change.fields
    after = fields._replace(**given)
    return after._replace(operator_code=after.operator_code or operator_code_of(after.phone))


def operator_code_of(phone: str) -> str:
    """Return the operator code in a phone number."""
    return phone[1:4]


def first_id(client_id: str, message_id: str) -> UUID:
    """Return the id of the first client that a request creates. The others follow it one by one.

    A request that is delivered again leads to the same ids.
    """
    return with_time_of(message_id, uuid5(_NAMESPACE, f"{client_id}\0{message_id}"))


def phones(prefix: str) -> tuple[str, str]:
    """Return the first and the last phone number with this beginning."""
    return prefix.ljust(_PHONE_DIGITS, "0"), prefix.ljust(_PHONE_DIGITS, "9")


def parse_phone(text: str) -> str:
    """Return a phone number.

    Raises:
        ValueError: the text is not one.
    """
    if not re.fullmatch(PHONE_PATTERN, text):
        raise ValueError(text)
    return text
