"""Orders: how what the sandbox plays is told to behave."""

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

from services.sandbox.domain import DEFAULT_SECRET, Keys

_FIELDS = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

_HeaderValue = Annotated[str, Field(pattern=r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$")]
"""What a header may carry: visible ASCII, so that an order cannot smuggle a line break."""


def _usable(secret: SecretStr) -> SecretStr:
    Keys.of(secret.get_secret_value())
    return secret


class Fail(BaseModel):
    """Answers with a status, as an application that is down, overloaded (429, 503) or gone (410).

    ``retry_after`` is sent as it is given: seconds, a date, or nonsense.
    """

    model_config = _FIELDS
    kind: Literal["fail"]
    status: int = Field(500, ge=200, le=599)
    retry_after: int | _HeaderValue | None = None


class Hang(BaseModel):
    """Takes the request and never answers, until the client goes."""

    model_config = _FIELDS
    kind: Literal["hang"]
    status: ClassVar[None] = None


class Drip(BaseModel):
    """Answers 200 at once, then sends ``bytes`` bytes of body, one every ``interval`` seconds."""

    model_config = _FIELDS
    kind: Literal["drip"]
    interval: PositiveFloat = 0.4
    bytes: PositiveInt = 1000
    status: ClassVar[int] = 200


class Delay(BaseModel):
    """Answers as usual, but only after ``seconds``."""

    model_config = _FIELDS
    kind: Literal["delay"]
    seconds: PositiveFloat


class Redirect(BaseModel):
    """Sends the client elsewhere."""

    model_config = _FIELDS
    kind: Literal["redirect"]
    location: _HeaderValue
    status: Literal[301, 302, 303, 307, 308] = 307


class HugeBody(BaseModel):
    """Answers 200 with ``bytes`` zero bytes and no length; with ``gzip`` they travel compressed."""

    model_config = _FIELDS
    kind: Literal["huge_body"]
    bytes: PositiveInt
    gzip: bool = False
    status: ClassVar[int] = 200


class Reset(BaseModel):
    """Begins an answer and resets the connection in the middle of the body."""

    model_config = _FIELDS
    kind: Literal["reset"]
    status: ClassVar[None] = None


class EndlessHeaders(BaseModel):
    """Sends headers and never comes to the body; ``interval`` seconds apart, or at full speed."""

    model_config = _FIELDS
    kind: Literal["endless_headers"]
    interval: float = Field(0, ge=0)
    status: ClassVar[None] = None


class Close(BaseModel):
    """Closes the connection without a word."""

    model_config = _FIELDS
    kind: Literal["close"]
    status: ClassVar[None] = None


class Answer(BaseModel):
    """Answers with this body, whatever was asked: nonsense, or another application's JSON."""

    model_config = _FIELDS
    kind: Literal["answer"]
    body: Annotated[str, Field(max_length=65_536)]
    content_type: _HeaderValue = "application/json"
    status: int = Field(200, ge=200, le=599)


Behaviour = (
    Fail | Hang | Drip | Delay | Redirect | HugeBody | Reset | EndlessHeaders | Close | Answer
)
"""What a receiver over HTTP can be told to do."""

_Behaviour = Annotated[Behaviour, Field(discriminator="kind")]


class Order(BaseModel):
    """What a mailbox does with its webhooks.

    ``times`` is for how many requests the behaviour lasts (null: until the next order); ``per``
    says whether they are counted over the whole mailbox or for each ``webhook-id``. While it lasts
    it decides the answer, whether the signature is good or not. After that, and without a
    behaviour: 200, or 401 if ``verify`` is true and the signature is missing or wrong.
    """

    model_config = _FIELDS
    secrets: tuple[Annotated[SecretStr, Field(min_length=1), AfterValidator(_usable)], ...] = Field(
        (SecretStr(DEFAULT_SECRET),), max_length=10
    )
    verify: bool = True
    behaviour: _Behaviour | None = None
    times: PositiveInt | None = None
    per: Literal["mailbox", "id"] = "mailbox"

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        # Not min_length: pydantic would find it hurt by an entry that is wrong for other reasons.
        if not self.secrets:
            raise ValueError("secrets needs at least one entry; leave it out for the default")
        _check_limits(self, "times", "per")
        return self


class ApiOrder(BaseModel):
    """What a data API does: ``behaviour`` for so many requests (null: until the next order)."""

    model_config = _FIELDS
    behaviour: _Behaviour | None = None
    times: PositiveInt | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        _check_limits(self, "times")
        return self


Recipients = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(max_length=1000)]
"""Addresses or phones that a behaviour is for; ``*`` stands for any characters. Empty: for all."""


class SmsOrder(BaseModel):
    """What the SMS gateway does with its requests.

    ``to``: the phones that the behaviour is for. ``per``: whether ``times`` counts the requests
    together or for each phone.
    """

    model_config = _FIELDS
    behaviour: _Behaviour | None = None
    to: Recipients = ()
    times: PositiveInt | None = None
    per: Literal["all", "to"] = "all"

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        _check_limits(self, "to", "times", "per")
        return self


class Refuse(BaseModel):
    """Answers with a code of SMTP: 4xx for now, 5xx for good."""

    model_config = _FIELDS
    kind: Literal["fail"]
    status: int = Field(451, ge=400, le=599)


MailBehaviour = Refuse | Hang | Delay | Close


class MailOrder(BaseModel):
    """What the mail server does.

    ``at``: with which command it begins, ``hello``, ``rcpt``, or ``data`` once the mail is whole.
    ``to`` and ``per`` as for the SMS gateway; nobody is named in a hello.
    """

    model_config = _FIELDS
    behaviour: Annotated[MailBehaviour, Field(discriminator="kind")] | None = None
    at: Literal["hello", "rcpt", "data"] = "rcpt"
    to: Recipients = ()
    times: PositiveInt | None = None
    per: Literal["all", "to"] = "all"

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.at == "hello" and (self.to or self.per == "to"):
            raise ValueError("a hello names no recipient: leave out to and per, or change at")
        _check_limits(self, "at", "to", "times", "per")
        return self


def _check_limits(order: Order | ApiOrder | SmsOrder | MailOrder, *limits: str) -> None:
    if order.behaviour is None and order.model_fields_set & set(limits):
        raise ValueError(f"{' and '.join(limits)} limit a behaviour: give a behaviour, too")
