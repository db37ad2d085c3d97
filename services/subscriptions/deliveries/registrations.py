"""The callbacks that users register, in PostgreSQL. Each is an endpoint.

All methods raise StoreConnectionLostError when the database is unavailable. The effect is then
unknown, and a repeat of the request is safe.
"""

import base64
import os
from typing import Any, Final, NamedTuple
from uuid import UUID

from services.subscriptions.deliveries.messages import CALLBACK_DEPRECATED, Destination
from services.subscriptions.deliveries.store import NewDelivery, add
from shared.contracts.callback import STANDARD_PREFIX
from shared.contracts.context import json_text
from shared.contracts.endpoints import EndpointStatus
from shared.contracts.registrations import Registration
from shared.ids import uuid7
from shared.postgres.pool import Database
from shared.postgres.queries import queries
from shared.security.encryption import SecretCipher

_SQL: Final = queries("services.subscriptions", "registrations.sql")
# Deliveries that a stop cancels, or a new URL makes due, in one request. Few requests are handled
# at a time, so a large number would delay other users.
MAX_CHANGED: Final = 5000
_SECRET_BYTES: Final = 32


class NotRegisteredError(Exception):
    """The user has no callback."""


class RegistrationDisabledError(Exception):
    """The callback of the user is disabled."""


class Started(NamedTuple):
    """A registered callback: its user and its secret."""

    user_id: int
    secret: str


class Registrations:
    """The callbacks of users; several processes may use them at the same time."""

    def __init__(self, database: Database, cipher: SecretCipher) -> None:
        self._database = database
        self._cipher = cipher

    async def start(
        self, token: bytes, registration: Registration, request_id: str
    ) -> Started | None:
        """Register or replace the callback of a token's user.

        If the URL changes, both servers get the event `callback_deprecated`. Return None if the
        token is not valid.
        """
        ack_token = token if registration.ack else None
        async with self._database.transaction() as connection:
            user_id = await self._lock_user(connection, token)
            if user_id is None:
                return None
            stored = await connection.fetchrow(_SQL["registration"], user_id)
            if stored is not None and stored["rotation"] == request_id:
                return Started(user_id, self._decrypt(stored["secret"]))
            secret = new_secret()
            values = (
                self._encrypt(registration.callback),
                self._encrypt(secret),
                registration.fingerprint,
                registration.ordered,
                ack_token,
                request_id,
            )
            if stored is None:
                await connection.execute(_SQL["register"], uuid7(), user_id, *values)
                return Started(user_id, secret)
            await connection.execute(_SQL["change"], stored["id"], *values)
            if (old := self._decrypt(stored["url"])) != registration.callback:
                await self._deprecate(connection, stored, old, registration.callback)
        return Started(user_id, secret)

    async def _deprecate(self, connection: Any, stored: Any, old: str, new: str) -> None:
        id_: UUID = stored["id"]
        webhook_id = f"deprecated-{uuid7()}"
        payload = json_text({"type": CALLBACK_DEPRECATED, "event": {"old": old, "new": new}})
        destination = Destination(old, [self._decrypt(stored["secret"])], stored["fingerprint"])
        await connection.execute(_SQL["make_due"], id_, MAX_CHANGED)
        await add(
            connection,
            [
                NewDelivery(
                    id_,
                    webhook_id,
                    payload=payload,
                    destination=destination.encrypted(self._cipher),
                    at_once=True,
                ),
                NewDelivery(id_, webhook_id, payload=payload),
            ],
        )

    async def stop(self, token: bytes) -> int | None:
        """Remove the callback of a token's user, cancel its deliveries, and return the user's id.

        Return None if the token is not valid.
        """
        async with self._database.transaction() as connection:
            user_id = await self._lock_user(connection, token)
            if user_id is not None:
                endpoint_id = await connection.fetchval(_SQL["stop"], user_id)
                if endpoint_id is not None:
                    await connection.execute(_SQL["cancel"], endpoint_id, MAX_CHANGED)
        return user_id

    async def test(self, token: bytes, request_id: str) -> str | None:
        """Send a test event to the callback of a token's user, and return its `webhook-id`.

        Return None if the token is not valid.

        Raises:
            NotRegisteredError, RegistrationDisabledError: nothing is sent.
        """
        webhook_id = f"test-{request_id}"
        async with self._database.transaction() as connection:
            user_id = await self._lock_user(connection, token)
            if user_id is None:
                return None
            stored = await connection.fetchrow(_SQL["registration"], user_id)
            if stored is None:
                raise NotRegisteredError
            if stored["status"] == EndpointStatus.DISABLED:
                raise RegistrationDisabledError
            payload = json_text({"type": "test", "event": {"user_id": user_id}})
            await add(
                connection, [NewDelivery(stored["id"], webhook_id, payload=payload, at_once=True)]
            )
        return webhook_id

    async def _lock_user(self, connection: Any, token: bytes) -> int | None:
        user_id: int | None = await connection.fetchval(_SQL["user_of_token"], token)
        if user_id is not None:
            await connection.fetchval(_SQL["lock_user"], user_id)
        return user_id

    def _encrypt(self, text: str) -> bytes:
        return self._cipher.encrypt(text.encode())

    def _decrypt(self, stored: bytes) -> str:
        return self._cipher.decrypt(stored).decode()


def new_secret() -> str:
    """Return a new random secret in the format of Standard Webhooks."""
    return STANDARD_PREFIX + base64.b64encode(os.urandom(_SECRET_BYTES)).decode()
