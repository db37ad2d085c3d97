"""SendCallback: the command to deliver one signed HTTP callback. Queue `callbacks`."""

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

SEND_CALLBACK: Final = "SendCallback"
# A secret of Standard Webhooks continues in base64.
STANDARD_PREFIX: Final = "whsec_"

# RFC 9110: a header name is a token; a value is visible text, spaces and tabs.
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
MAX_HEADERS: Final = 64
MAX_HEADER_BYTES: Final = 16_384
MAX_SECRETS: Final = 8  # rotation needs two
MAX_DELAY: Final = 3600.0  # the longest tier


def _headers(headers: dict[str, str]) -> dict[str, str]:
    if len(headers) > MAX_HEADERS:
        raise ValueError(f"{len(headers)} headers, at most {MAX_HEADERS} are allowed")
    size = 0
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name[:40]!r} is not a header name")
        if not _VALUE.fullmatch(value):
            raise ValueError(
                f"the value of {name[:40]!r} has characters that are not valid in a header"
            )
        size += len(name) + len(value)
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"{size} bytes of headers, at most {MAX_HEADER_BYTES} are allowed")
    return headers


# Headers that a command cannot set, because the HTTP client or the signature sets them.
RESERVED_HEADERS: Final = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "x-signature",
    }
)
RESERVED_PREFIX: Final = "webhook-"


def is_reserved(header: str) -> bool:
    """Return whether a command cannot set a header of this name."""
    name = header.lower()
    return name in RESERVED_HEADERS or name.startswith(RESERVED_PREFIX)


# Visible ASCII, because the id is sent as the header `webhook-id`.
IDENTIFIER_PATTERN: Final = r"^[\x21-\x7e]{1,255}$"
Identifier = Annotated[str, StringConstraints(pattern=IDENTIFIER_PATTERN)]
# Standard Webhooks signs `ID.TIMESTAMP.BODY`. An id that ends in a dot and a time could be split at
# another dot, so that a signed request could be sent again as one with another id and time.
_AMBIGUOUS_ID: Final = re.compile(r".*\.[0-9]{9,}(\..*)?")


def check_webhook_id(identifier: str) -> str:
    """Check that a signature of this id can be read in one way only, and return it.

    Raises:
        ValueError: it is ambiguous.
    """
    if _AMBIGUOUS_ID.fullmatch(identifier):
        raise ValueError("a dot before a number of 9 or more digits makes signatures ambiguous")
    return identifier


WebhookId = Annotated[Identifier, AfterValidator(check_webhook_id)]
# No control characters, because it appears in facts and logs.
CLIENT_ID_PATTERN: Final = r"^[^\x00-\x1f\x7f]{1,255}$"
ClientId = Annotated[str, StringConstraints(pattern=CLIENT_ID_PATTERN)]
Secret = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Secrets = Annotated[list[Secret], Field(min_length=1, max_length=MAX_SECRETS)]
Delay = Annotated[float, Field(gt=0, le=MAX_DELAY, allow_inf_nan=False)]
Headers = Annotated[dict[str, str], AfterValidator(_headers)]


def _plain_hex(fingerprint: str) -> str:
    return fingerprint.replace(":", "").lower()


# In hex, with or without a colon between the bytes. The value has no colons.
Fingerprint = Annotated[
    str,
    StringConstraints(pattern=r"^([0-9A-Fa-f]{64}|([0-9A-Fa-f]{2}:){31}[0-9A-Fa-f]{2})$"),
    AfterValidator(_plain_hex),
    Field(
        description="SHA-256 of the server's certificate in hex. If set, only this certificate is"
        " accepted, even if it is self-signed."
    ),
]


class Retry(BaseModel):
    """The retry policy of one callback. The default uses all tiers for a day."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    quick_retries_count: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        default=None,
        description="Retries after the first attempt. Default: one for each of `delays`.",
    )
    delays: Annotated[list[Delay], Field(min_length=1, max_length=1000)] | None = Field(
        default=None,
        description="Seconds before each retry; the last one repeats. Each is rounded up to a "
        "retry tier. Default: all tiers, from the shortest.",
    )

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.quick_retries_count is None and self.delays is None:
            raise ValueError("set quick_retries_count, delays, or both")
        return self


class SendCallback(BaseModel):
    """Deliver `payload` to `target_url`, signed, and retry failed attempts."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    target_url: Annotated[str, StringConstraints(min_length=1, max_length=8192)]
    target_method: Literal["POST", "PUT", "PATCH", "DELETE", "GET"] = "POST"
    hmac_secret: Secret | Secrets | None = Field(
        default=None, repr=False, description="One secret, or a list to sign with each of them."
    )
    secret_ref: Identifier | None = Field(
        default=None, description="Name of a configured secret, instead of `hmac_secret`."
    )
    unsigned: bool = Field(
        default=False, description="Send without a signature, for receivers that verify a ticket."
    )
    payload: Any = Field(description="Any JSON value; sent with sorted keys.")
    format: Literal["json", "form", "query"] = Field(
        default="json",
        description="Encoding of the payload. `form` and `query` require an object: it is sent as "
        "an HTML form, or in the query with an empty body. Values that are not text are JSON.",
    )
    id: WebhookId | None = Field(default=None, description="Sent as `webhook-id` on every attempt.")
    headers: Headers = Field(default_factory=dict)
    timeout: Annotated[float, Field(gt=0, le=300, allow_inf_nan=False)] | None = Field(
        default=None, description="Timeout of one attempt in seconds, including connecting."
    )
    expires_at: AwareDatetime | None = Field(
        default=None, description="No attempt starts at or after this time."
    )
    retry: Retry | None = None
    client_id: ClientId | None = None
    fingerprint: Fingerprint | None = None

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        given = (self.hmac_secret is not None) + (self.secret_ref is not None) + self.unsigned
        if given != 1:
            raise ValueError("set either hmac_secret or secret_ref (or `unsigned: true`)")
        return self

    @model_validator(mode="after")
    def _object_payload(self) -> Self:
        if self.format != "json" and not isinstance(self.payload, dict):
            raise ValueError(f"format {self.format!r} requires a payload that is an object")
        return self

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return the secrets in the message itself, in order."""
        if self.hmac_secret is None:
            return ()
        return (self.hmac_secret,) if isinstance(self.hmac_secret, str) else tuple(self.hmac_secret)
