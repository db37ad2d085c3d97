"""Settings: environment variables over `ringback.toml`, every fault named at once.

A setting `x` of a service's table `[callback]` is `RINGBACK_CALLBACK_X` in the environment; one
that all services share stands at the top of the file and is `RINGBACK_X`.
"""

import os
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from email.utils import formataddr, parseaddr
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    SettingsConfigDict,
    SettingsError,
)
from yarl import URL

from shared.http.guard import ForbiddenTargetError, parse_target
from shared.registry import SERVICES
from shared.topology import QueueType

PREFIX: Final = "RINGBACK_"
FILE: Final = Path("ringback.toml")
DATABASE_URL: Final = f"{PREFIX}DATABASE_URL"
DATABASE_EXAMPLE: Final = "postgresql://user:password@127.0.0.1:5432/ringback"

_HOST: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")

S = TypeVar("S", bound=BaseSettings)


class InvalidSettingsError(Exception):
    """The configuration is wrong; `faults` names each setting and how to mend it."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


def _amqp_url(value: str) -> str:
    url = URL(value)
    if url.scheme not in ("amqp", "amqps") or not url.host:
        raise ValueError("must look like amqp://user:password@host:5672/vhost")
    return value


def _database_url(value: str) -> str:
    if not value.startswith(("postgresql://", "postgres://")):
        raise ValueError("must look like postgresql://user:password@host:5432/name")
    return value


def _ticket_key(value: SecretStr) -> SecretStr:
    if value.get_secret_value().startswith(("-----BEGIN ", "ssh-")):
        raise ValueError("must be a secret that both sides know; public keys go into a JWKS file")
    return value


def _jwks_file(value: Path) -> Path:
    from shared.security.tickets import public_keys  # noqa: PLC0415 - takes 0.3 s, and most set no such file

    public_keys(value)
    return value


def _secrets_key(value: SecretStr) -> SecretStr:
    from shared.security.encryption import parse_keys  # noqa: PLC0415 - as above

    parse_keys(value.get_secret_value())
    return value


def _smtp_url(value: SecretStr) -> SecretStr:
    url = _parsed(value.get_secret_value())
    if url is None or url.scheme not in ("smtp", "smtps") or not url.host:
        raise ValueError("must look like smtp://user:password@host:587 (or smtps://…:465)")
    return value


def _sms_url(value: str) -> str:
    url = _parsed(value)
    if url is None or url.scheme not in ("http", "https") or not url.host or "?" in value:
        raise ValueError("must look like https://sms.example.com")
    try:
        parse_target(value)
    except ForbiddenTargetError as error:
        raise ValueError(str(error)) from None
    return value.rstrip("/")


def _sms_key(value: SecretStr | None, others: ValidationInfo) -> SecretStr | None:
    if value is None and others.data.get("sms_url"):
        raise ValueError(f"not set, but {PREFIX}SMS_URL is; the gateway is shown a JWT made of it")
    return value


def _parsed(text: str) -> URL | None:
    try:
        return URL(text)
    except ValueError:
        return None


def _mail_from(value: str) -> str:
    name, address = parseaddr(value)
    if "@" not in address or not value.isprintable():
        raise ValueError("must look like Shop <news@shop.example.com>")
    return formataddr((name, address))


def _sources(value: Any) -> Any:
    """Accept `auth, api:8080, movies=https://…`, as the environment gives it, besides a mapping."""
    if not isinstance(value, str):
        return value
    pairs = (part.strip().partition("=") for part in value.split(",") if part.strip())
    return {host.strip(): url.strip() for host, _, url in pairs}


def _checked_sources(value: dict[str, str]) -> dict[str, str]:
    for host, url in value.items():
        if not re.fullmatch(
            r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?", host
        ):
            raise ValueError(f"{host!r} is no host such as auth or api.example.com:8080")
        parsed = _parsed(url) if url else None
        if url and (parsed is None or parsed.scheme not in ("http", "https") or not parsed.host):
            raise ValueError(f"{host}: {url!r} is no URL such as http://10.0.0.7:8000")
    return {host.lower(): url.rstrip("/") for host, url in value.items()}


# In docker-compose.yml, what is not set is empty.
EMPTY_IS_NONE: Final = BeforeValidator(lambda value: None if value == "" else value)


class Settings(BaseSettings):
    """What every service shares."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", hide_input_in_errors=True)

    amqp_url: Annotated[str, AfterValidator(_amqp_url)] = Field(
        default="amqp://guest:guest@127.0.0.1:5672/", description="The RabbitMQ to work with."
    )
    database_url: Annotated[str, AfterValidator(_database_url)] | None = Field(
        default=None,
        description="The PostgreSQL to work with.",
        examples=[DATABASE_EXAMPLE],
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="The least level that is logged."
    )
    log_format: Literal["json", "text"] = Field(
        default="json", description="json: one object a line; text: for reading along."
    )
    metrics_host: str = Field(
        default="127.0.0.1", description="Where /metrics, /healthz and /readyz listen."
    )
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        default=None,
        description="Their port; each service has its own default.",
        examples=[SERVICES["callback"].metrics_port],
    )
    http_host: str = Field(default="127.0.0.1", description="Where the gateway listens.")
    http_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=8080, description="Its port; 0 takes a free one."
    )
    ticket_key: Annotated[
        Annotated[SecretStr, AfterValidator(_ticket_key)] | None, EMPTY_IS_NONE
    ] = Field(
        default=None,
        description="Checks callers' service tickets (HS256), and signs Ringback's own; 32 random"
        " characters or more.",
        examples=["a-secret-of-32-random-characters"],
    )
    ticket_jwks_file: Annotated[
        Annotated[Path, AfterValidator(_jwks_file)] | None, EMPTY_IS_NONE
    ] = Field(
        default=None,
        description="Public keys that check callers' tickets as well (RS256, ES256, EdDSA).",
        examples=["/etc/ringback/jwks.json"],
    )
    secrets_key: Annotated[
        Annotated[SecretStr, AfterValidator(_secrets_key)] | None, EMPTY_IS_NONE
    ] = Field(
        default=None,
        description="Encrypts secrets in the database: 32 bytes in base64; several, separated by"
        " commas: the first encrypts, all decrypt.",
        examples=["MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="],
    )
    shutdown_timeout: Annotated[float, Field(gt=0, le=3600)] = Field(
        default=25.0,
        description="Seconds to finish work in flight after SIGTERM; below Kubernetes' 30.",
    )
    rules_file: Annotated[Path | None, EMPTY_IS_NONE] = Field(
        default=None,
        description="Rules that say what follows from events, besides the shipped ones.",
        examples=["/etc/ringback/rules.toml"],
    )
    smtp_url: Annotated[Annotated[SecretStr, AfterValidator(_smtp_url)] | None, EMPTY_IS_NONE] = (
        Field(
            default=None,
            description="The mail server; smtps:// is TLS from the start. Not set: e-mails wait.",
            examples=["smtp://user:password@mail.example.com:587"],
        )
    )
    mail_from: Annotated[str, AfterValidator(_mail_from)] = Field(
        default="Ringback <ringback@localhost>", description="Whom e-mails are from."
    )
    sms_url: Annotated[Annotated[str, AfterValidator(_sms_url)] | None, EMPTY_IS_NONE] = Field(
        default=None,
        description="The SMS gateway; a message goes to URL/v1/send/ID. Not set: SMS wait.",
        examples=["https://sms.example.com"],
    )
    sms_key: Annotated[SecretStr | None, EMPTY_IS_NONE, AfterValidator(_sms_key)] = Field(
        default=None,
        validate_default=True,
        description="Its key: signs the JWT it is shown (HS256).",
        examples=["the-gateways-key"],
    )
    sources: Annotated[
        dict[str, str], NoDecode, BeforeValidator(_sources), AfterValidator(_checked_sources)
    ] = Field(
        default_factory=dict,
        description="Hosts that user lists and template data may come from, separated by commas;"
        " HOST=URL for one that is found elsewhere.",
        examples=["auth, movies=http://10.0.0.7:8000"],
    )
    templates_dir: Annotated[Path | None, EMPTY_IS_NONE] = Field(
        default=None,
        description="Templates, besides the shipped ones; one of the same name comes first.",
        examples=["/etc/ringback/templates"],
    )
    queue_type: QueueType = Field(
        default=QueueType.QUORUM, description="classic gives up at-least-once dead-lettering."
    )


def load(model: type[S], section: str | None = None, *, file: Path = FILE) -> S:
    """The settings of one model, from the file's table `section` and the environment.

    Raises:
        InvalidSettingsError: with every fault of this model.
    """
    prefix = model.model_config.get("env_prefix", PREFIX)
    try:
        values = _table(file, section) | EnvSettingsSource(model)()
        return model.model_validate(values)
    except SettingsError as error:
        raise InvalidSettingsError([f"{prefix}…: {error}"]) from None
    except ValidationError as error:
        raise InvalidSettingsError(
            [_fault(fault, prefix, section, file) for fault in error.errors(include_input=False)]
        ) from None


def load_shared(
    services: Mapping[str, type[BaseSettings]],
    *,
    storing: Collection[str] = (),
    file: Path = FILE,
) -> Settings:
    """The settings that every service shares, once those of these services are right as well.

    For the services named in `storing`, a database must be configured.

    Raises:
        InvalidSettingsError: with every fault of all of them.
    """
    faults = [
        f"{file}: there is no service {name!r} to set anything for"
        for name, value in _content(file).items()
        if isinstance(value, dict) and name not in SERVICES
    ]
    models: list[tuple[str | None, type[BaseSettings]]] = [(None, Settings), *services.items()]
    for section, model in models:
        try:
            load(model, section, file=file)
        except InvalidSettingsError as error:
            faults += error.faults
    if storing and "database_url" not in _table(file, None) | EnvSettingsSource(Settings)():
        faults.append(
            f"{DATABASE_URL}: not set, but {' and '.join(storing)} must have a PostgreSQL, such as"
            f" {DATABASE_EXAMPLE}"
        )
    if faults:
        raise InvalidSettingsError(faults)
    return load(Settings, file=file)


def connectable_host(host: str) -> str:
    """The address under which this machine finds what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - binds nothing


def _content(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        return tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettingsError([f"{file}: {error}"]) from None


def _table(file: Path, section: str | None) -> dict[str, Any]:
    content = _content(file)
    if section is None:
        return {key: value for key, value in content.items() if not isinstance(value, dict)}
    table = content.get(section, {})
    if not isinstance(table, dict):
        raise InvalidSettingsError([f"{file}: {section} must be a table: [{section}]"])
    return table


def _fault(fault: Any, prefix: str, section: str | None, file: Path) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    variable = prefix + str(fault["loc"][0]).upper() if fault["loc"] else prefix
    table = f" [{section}]" if section else ""
    where = variable if variable in os.environ else f"{file}{table} {path}"
    if fault["type"] == "extra_forbidden":
        return f"{where}: there is no such setting"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}"
