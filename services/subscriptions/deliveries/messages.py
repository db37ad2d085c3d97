"""SendCallback messages for deliveries, joined from texts that are already JSON."""

from dataclasses import dataclass
from datetime import datetime
from json import dumps, loads
from typing import Any, Final

from services.subscriptions.deliveries.domain import QUICK_DELAYS
from shared.contracts.context import json_text
from shared.security.encryption import SecretCipher

SEQUENCE_HEADER: Final = "x-ringback-sequence"
# The type of the event that names a new callback URL.
CALLBACK_DEPRECATED: Final = "callback_deprecated"
_RETRY: Final = dumps({"quick_retries_count": len(QUICK_DELAYS), "delays": QUICK_DELAYS})


@dataclass(frozen=True, slots=True)
class Destination:
    """The URL of a delivery, and the secrets that sign it."""

    url: str
    secrets: list[str]
    fingerprint: str | None = None

    def encrypted(self, cipher: SecretCipher) -> bytes:
        """Return the encrypted destination, for storage."""
        fields = {"url": self.url, "secrets": self.secrets, "fingerprint": self.fingerprint}
        return cipher.encrypt(json_text(fields).encode())

    @classmethod
    def decrypted(cls, stored: bytes, cipher: SecretCipher) -> "Destination":
        """Return a stored destination.

        Raises:
            DecryptionError: no configured key decrypts it.
        """
        return cls(**loads(cipher.decrypt(stored)))


@dataclass(frozen=True, slots=True)
class Claim:
    """A claimed delivery with its content and destination.

    status: that of its endpoint; None if the endpoint does not exist.
    content: JSON; None if it is no longer stored.
    """

    id: int
    dispatch: int
    status: str | None
    webhook_id: str
    client_id: str | None
    sequence: int | None
    content: str | None
    destination: bytes | None
    url: bytes
    headers: bytes | None
    secret: bytes
    old_secret: bytes | None
    fingerprint: str | None
    now: datetime


def event_payload(type_: str, event: str) -> str:
    """Return the body of an event as JSON; `event` is JSON."""
    return f'{{"type":{dumps(type_)},"event":{event}}}'


def send_callback(claim: Claim, cipher: SecretCipher, expires_at: datetime) -> bytes:
    """Return the body of the SendCallback of a claim that has content.

    Raises:
        DecryptionError: no configured key decrypts its endpoint.
    """
    headers: dict[str, Any] = {}
    if claim.destination is not None:
        to = Destination.decrypted(claim.destination, cipher)
    else:
        to = Destination(
            cipher.decrypt(claim.url).decode(),
            [
                cipher.decrypt(secret).decode()
                for secret in (claim.secret, claim.old_secret)
                if secret is not None
            ],
            claim.fingerprint,
        )
        if claim.headers is not None:
            headers = loads(cipher.decrypt(claim.headers))
    if claim.sequence is not None:
        headers[SEQUENCE_HEADER] = str(claim.sequence)
    fields: dict[str, Any] = {
        "target_url": to.url,
        "hmac_secret": to.secrets,
        "id": claim.webhook_id,
        "headers": headers,
        "expires_at": expires_at.isoformat(),
    }
    if claim.client_id:
        fields["client_id"] = claim.client_id
    if to.fingerprint is not None:
        fields["fingerprint"] = to.fingerprint
    opened = json_text(fields).removesuffix("}")
    return f'{opened},"retry":{_RETRY},"payload":{claim.content}}}'.encode()
