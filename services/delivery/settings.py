"""The settings of delivery."""

from email.utils import formataddr, parseaddr
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo
from yarl import URL

from shared.http.guard import ForbiddenTargetError, parse_target
from shared.settings import EMPTY_IS_NONE, TableSettings

Tls = Literal["offered", "required", "off"]


def _smtp_url(value: SecretStr) -> SecretStr:
    url = _parse(value.get_secret_value())
    if url is None or url.scheme not in ("smtp", "smtps") or not url.host:
        raise ValueError("must look like smtp://user:password@host:587 (or smtps://…:465)")
    return value


def _smtp_tls(value: Tls | None, others: ValidationInfo) -> Tls:
    """Return the use of STARTTLS: required with a password, which must not be sent in clear."""
    secret: SecretStr | None = others.data.get("smtp_url")
    url = None if secret is None else _parse(secret.get_secret_value())
    if url is None or url.scheme != "smtp" or url.password is None:
        return value or "offered"
    if value in ("offered", "off"):
        raise ValueError("must be required, because RINGBACK_SMTP_URL contains a password")
    return "required"


def _mail_from(value: str) -> str:
    name, address = parseaddr(value)
    if "@" not in address or not value.isprintable():
        raise ValueError("must look like Shop <news@shop.example.com>")
    return formataddr((name, address))


def _sms_url(value: str) -> str:
    url = _parse(value)
    if url is None or url.scheme not in ("http", "https") or not url.host or "?" in value:
        raise ValueError("must look like https://sms.example.com")
    try:
        parse_target(value)
    except ForbiddenTargetError as error:
        raise ValueError(str(error)) from None
    return value.rstrip("/")


def _sms_key(value: SecretStr | None, others: ValidationInfo) -> SecretStr | None:
    if value is None and others.data.get("sms_url"):
        raise ValueError("not set, but RINGBACK_SMS_URL is; the JWT is signed with this key")
    return value


def _parse(text: str) -> URL | None:
    try:
        return URL(text)
    except ValueError:
        return None


class DeliverySettings(TableSettings, env_prefix="RINGBACK_DELIVERY_"):
    """The table `[delivery]` of ringback.toml."""

    smtp_url: Annotated[Annotated[SecretStr, AfterValidator(_smtp_url)] | None, EMPTY_IS_NONE] = (
        Field(
            default=None,
            validation_alias="RINGBACK_SMTP_URL",
            description="URL of the mail server; smtps:// uses TLS from the start. Without it,"
            " e-mails stay in their queue.",
            examples=["smtp://user:password@mail.example.com:587"],
        )
    )
    mail_from: Annotated[str, AfterValidator(_mail_from)] = Field(
        default="Ringback <ringback@localhost>",
        validation_alias="RINGBACK_MAIL_FROM",
        description="Sender address of e-mails.",
    )
    smtp_tls: Annotated[Tls | None, EMPTY_IS_NONE, AfterValidator(_smtp_tls)] = Field(
        default=None,
        validate_default=True,
        description="Use of STARTTLS on smtp://: if `offered`, always (`required`), or never"
        " (`off`). Default: `required` if the URL contains a password, otherwise `offered`.",
        examples=["required"],
    )
    smtp_connections: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=20,
        description="Maximum number of connections to the mail server, of all delivery processes."
        " Each sends one e-mail at a time.",
    )
    smtp_rate: Annotated[Annotated[float, Field(gt=0, le=100_000)] | None, EMPTY_IS_NONE] = Field(
        default=None,
        description="Maximum number of e-mails per second, of all delivery processes. Default: no"
        " limit.",
        examples=[14],
    )
    smtp_burst: Annotated[float, Field(ge=1, le=100_000)] = Field(
        default=10, description="Number of e-mails that may exceed the rate at once."
    )
    smtp_timeout: Annotated[float, Field(gt=0, le=600)] = Field(
        default=60.0,
        description="Timeout of sending one e-mail, including the connection, in seconds.",
    )
    sms_url: Annotated[Annotated[str, AfterValidator(_sms_url)] | None, EMPTY_IS_NONE] = Field(
        default=None,
        validation_alias="RINGBACK_SMS_URL",
        description="URL of the SMS gateway. Requests go to URL/v1/send/ID. Without it, SMS stay in"
        " their queue.",
        examples=["https://sms.example.com"],
    )
    sms_key: Annotated[SecretStr | None, EMPTY_IS_NONE, AfterValidator(_sms_key)] = Field(
        default=None,
        validation_alias="RINGBACK_SMS_KEY",
        validate_default=True,
        description="Key that signs the JWT for the SMS gateway (HS256).",
        examples=["the-gateways-key"],
    )
    sms_requests: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=20,
        description="Maximum number of requests in flight to the SMS gateway, of all delivery"
        " processes.",
    )
    sms_rate: Annotated[Annotated[float, Field(gt=0, le=100_000)] | None, EMPTY_IS_NONE] = Field(
        default=None,
        description="Maximum number of SMS per second, of all delivery processes. Default: no"
        " limit.",
        examples=[30],
    )
    sms_burst: Annotated[float, Field(ge=1, le=100_000)] = Field(
        default=10, description="Number of SMS that may exceed the rate at once."
    )
    sms_timeout: Annotated[float, Field(gt=0, le=300)] = Field(
        default=10.0,
        description="Timeout of a request to the SMS gateway, including the response, in seconds.",
    )
    prefetch: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=500,
        description="Maximum number of messages in flight from each queue in one worker.",
    )
    breaker_failures: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5, description="Number of failures in a row that open a channel's circuit breaker."
    )
    give_up_after: Annotated[float, Field(gt=0)] = Field(
        default=86_400.0, description="Time after which a message is dead-lettered, in seconds."
    )
    max_message_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=4_194_304,
        description="Maximum size of a message in bytes. Larger ones are dead-lettered.",
    )
