"""The behaviours that receivers of the sandbox can simulate, and their settings."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    model_validator,
)

from services.sandbox.domain import DEFAULT_SECRET, SecretKeys

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

# A header's value in visible ASCII, so that it cannot contain a line break.
_HeaderValue = Annotated[str, Field(pattern=r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$")]


def _check_secret(secret: SecretStr) -> SecretStr:
    SecretKeys.derive(secret.get_secret_value())
    return secret


class Fail(BaseModel):
    """A status of an application that is down (500), overloaded (429, 503) or gone (410).

    `retry_after` is sent unchanged: seconds, a date, or nonsense.
    """

    model_config = _STRICT
    kind: Literal["fail"]
    status: int = Field(500, ge=200, le=599)
    retry_after: int | _HeaderValue | None = None


class Hang(BaseModel):
    """No response at all, until the client closes the connection."""

    model_config = _STRICT
    kind: Literal["hang"]
    status: ClassVar[None] = None


class Drip(BaseModel):
    """A response sent one byte every `interval` seconds.

    Status and headers are sent at once, then `bytes` bytes of body are dripped. `at`
    `headers` drips the status line and headers instead, and never reaches the body.
    """

    model_config = _STRICT
    kind: Literal["drip"]
    at: Literal["headers", "body"] = "body"
    interval: PositiveFloat = 0.4
    bytes: PositiveInt = 1000

    @property
    def status(self) -> int | None:
        """The status, if the client receives one."""
        return 200 if self.at == "body" else None


class Delay(BaseModel):
    """The usual response, `seconds` later."""

    model_config = _STRICT
    kind: Literal["delay"]
    seconds: PositiveFloat


class Redirect(BaseModel):
    """A redirect to `location`."""

    model_config = _STRICT
    kind: Literal["redirect"]
    location: _HeaderValue
    status: Literal[301, 302, 303, 307, 308] = 307


class HugeBody(BaseModel):
    """A 200 with `bytes` zero bytes and no length; with `gzip` they are sent compressed."""

    model_config = _STRICT
    kind: Literal["huge_body"]
    bytes: PositiveInt
    gzip: bool = False
    status: ClassVar[int] = 200


class Reset(BaseModel):
    """A connection reset: before the response, in its headers, or in its body."""

    model_config = _STRICT
    kind: Literal["reset"]
    at: Literal["start", "headers", "body"] = "body"
    status: ClassVar[None] = None


class EndlessHeaders(BaseModel):
    """Endless headers, `interval` seconds apart, or at full speed."""

    model_config = _STRICT
    kind: Literal["endless_headers"]
    interval: float = Field(0, ge=0)
    status: ClassVar[None] = None


class Close(BaseModel):
    """A closed connection instead of a response."""

    model_config = _STRICT
    kind: Literal["close"]
    status: ClassVar[None] = None


class Malformed(BaseModel):
    """A response that is not valid HTTP."""

    model_config = _STRICT
    kind: Literal["malformed"]
    response: Literal[
        "garbage",
        "short_body",
        "long_body",
        "endless_status_line",
        "endless_header",
        "endless_continue",
        "endless_chunks",
    ] = "garbage"
    status: ClassVar[None] = None


class Respond(BaseModel):
    """This body for every request: nonsense, or another application's JSON."""

    model_config = _STRICT
    kind: Literal["respond"]
    body: Annotated[str, Field(max_length=65_536)]
    content_type: _HeaderValue = "application/json"
    status: int = Field(200, ge=200, le=599)


# Every behaviour of a receiver over HTTP.
Behaviour = (
    Fail
    | Hang
    | Drip
    | Delay
    | Redirect
    | HugeBody
    | Reset
    | EndlessHeaders
    | Close
    | Malformed
    | Respond
)

_Behaviour = Annotated[Behaviour, Field(discriminator="kind")]


class MailboxSettings(BaseModel):
    """The response of a mailbox to its webhooks.

    The behaviour lasts for `times` requests (null: until it is changed). `per` selects
    whether they are counted for the whole mailbox or for each `webhook-id`. While the behaviour
    lasts, it decides the response. Otherwise the response is 200, or 401 if `verify` is true and
    the signature is missing or wrong.
    """

    model_config = _STRICT
    secrets: tuple[
        Annotated[SecretStr, Field(min_length=1), AfterValidator(_check_secret)], ...
    ] = Field((SecretStr(DEFAULT_SECRET),), max_length=10)
    verify: bool = True
    behaviour: _Behaviour | None = None
    times: PositiveInt | None = None
    per: Literal["mailbox", "id"] = "mailbox"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # Not min_length: pydantic also reports it when an entry is wrong for another reason.
        if not self.secrets:
            raise ValueError("secrets needs at least one entry; omit it for the default")
        _check_limits(self, "times", "per")
        return self


class ApiSettings(BaseModel):
    """The behaviour of a data API, for `times` requests (null: until it is changed)."""

    model_config = _STRICT
    behaviour: _Behaviour | None = None
    times: PositiveInt | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_limits(self, "times")
        return self


# Addresses or phones with a behaviour; `*` matches any characters. Empty means everyone.
Recipients = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(max_length=1000)]


class SmsSettings(BaseModel):
    """The behaviour of the SMS gateway.

    `to`: the phones that get the behaviour. `per`: whether `times` counts all requests
    together or those of each phone.
    """

    model_config = _STRICT
    behaviour: _Behaviour | None = None
    to: Recipients = ()
    times: PositiveInt | None = None
    per: Literal["all", "to"] = "all"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_limits(self, "to", "times", "per")
        return self


class Refuse(BaseModel):
    """An SMTP code: 4xx refuses for now, 5xx for good."""

    model_config = _STRICT
    kind: Literal["fail"]
    status: int = Field(451, ge=400, le=599)


MailBehaviour = Refuse | Hang | Delay | Close


class MailSettings(BaseModel):
    """The behaviour of the mail server.

    `at`: the command that gets the behaviour: `hello`, `rcpt`, or `data` when the whole
    mail was received. `to` and `per` are the same as for the SMS gateway.
    """

    model_config = _STRICT
    behaviour: Annotated[MailBehaviour, Field(discriminator="kind")] | None = None
    at: Literal["hello", "rcpt", "data"] = "rcpt"
    to: Recipients = ()
    times: PositiveInt | None = None
    per: Literal["all", "to"] = "all"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.at == "hello" and (self.to or self.per == "to"):
            raise ValueError("a hello has no recipient: omit to and per, or change at")
        _check_limits(self, "at", "to", "times", "per")
        return self


def _check_limits(
    settings: MailboxSettings | ApiSettings | SmsSettings | MailSettings, *limits: str
) -> None:
    if settings.behaviour is None and settings.model_fields_set & set(limits):
        raise ValueError(f"{' and '.join(limits)} limit a behaviour: add a behaviour")
