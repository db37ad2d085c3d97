"""Settings from `ringback.toml` and the environment, which overrides the file.

A setting at the top of the file applies to every process: `log_level` is `RINGBACK_LOG_LEVEL`. Each
service has its own table: `timeout` in `[callback]` is `RINGBACK_CALLBACK_TIMEOUT`. A setting may
name another variable as its `validation_alias`.
"""

import os
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from shared.amqp.addresses import validated
from shared.postgres.url import urls_of_hosts
from shared.registry import SERVICES
from shared.topology import DEFAULT_BACKLOG, QueueType

PREFIX: Final = "RINGBACK_"
FILE: Final = Path("ringback.toml")
DATABASE_URL: Final = f"{PREFIX}DATABASE_URL"
DATABASE_EXAMPLE: Final = "postgresql://user:password@127.0.0.1:5432/ringback"
COLLECTOR_EXAMPLE: Final = "http://127.0.0.1:4318"
# Each service has a table. Several services use the keys of `[security]`.
TABLES: Final = frozenset({*SERVICES, "security"})

# The types of pydantic's errors about a path to nothing.
_MISSING_FILE: Final = frozenset({"path_not_file", "path_not_directory"})

# Settings without which a service does not start, each with how to set it.
Required = Mapping[tuple[type[BaseSettings], str], str]

S = TypeVar("S", bound=BaseSettings)


class InvalidSettingsError(Exception):
    """The configuration is not valid; each of `faults` names a setting and its expected form."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


def _collector(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"must look like {COLLECTOR_EXAMPLE}")
    return value.rstrip("/")


def _database_url(value: str) -> str:
    urls_of_hosts(value)
    return value


def _names(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(name for part in value.split(",") if (name := part.strip()))
    return value


# A comma-separated text, as in the environment, or a list. The setting also needs `NoDecode`.
COMMA_SEPARATED: Final = BeforeValidator(_names)
# In docker-compose.yml, a variable that is not set is empty.
EMPTY_IS_NONE: Final = BeforeValidator(lambda value: None if value == "" else value)


class Settings(BaseSettings):
    """The settings that every process needs."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", hide_input_in_errors=True, validate_by_name=True
    )

    amqp_url: Annotated[str, AfterValidator(validated)] = Field(
        default="amqp://guest:guest@127.0.0.1:5672/",
        description="URL of RabbitMQ. For a cluster, the URLs of its nodes, separated by commas.",
    )
    database_url: Annotated[str, AfterValidator(_database_url)] | None = Field(
        default=None,
        description="URL of PostgreSQL, for the services that store data. With a standby, list"
        " all hosts: `user:password@a:5432,b:5432`. The one that accepts writes is used.",
        examples=[DATABASE_EXAMPLE],
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Lowest log level that is written."
    )
    log_format: Literal["json", "text"] = Field(
        default="json",
        description="Log format: `json` writes one object per line, `text` is for people.",
    )
    metrics_host: str = Field(
        default="127.0.0.1", description="Address of /metrics, /healthz and /readyz."
    )
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        default=None,
        description="Port of /metrics, /healthz and /readyz. Each service has its own default.",
        examples=[SERVICES["callback"].metrics_port],
    )
    shutdown_timeout: Annotated[float, Field(gt=0, le=3600)] = Field(
        default=25.0,
        description="Time to finish work in flight after SIGTERM, in seconds. Kubernetes allows"
        " 30.",
    )
    queue_type: QueueType = Field(
        default=QueueType.QUORUM,
        description="Type of all queues. `classic` queues dead-letter at most once.",
    )
    journal_backlog: Annotated[int, Field(ge=1000, le=100_000_000)] = Field(
        default=DEFAULT_BACKLOG,
        description="Number of facts that RabbitMQ keeps for the journal while it is down. It takes"
        " 2.3 kB of disk for each. It applies when the stream is declared.",
    )
    journal_bodies: Literal["none", "failed", "all"] = Field(
        default="failed",
        description="Requests that the journal keeps, so that callbacks can be replayed: none,"
        " those of failed attempts, or all. Needs RINGBACK_SECRETS_KEY.",
    )
    otlp_endpoint: Annotated[Annotated[str, AfterValidator(_collector)] | None, EMPTY_IS_NONE] = (
        Field(
            default=None,
            validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
            description="URL of the OpenTelemetry collector that gets spans over OTLP/HTTP."
            " Without it, tracing is off. Needs the extra `otel`.",
            examples=[COLLECTOR_EXAMPLE],
        )
    )


class TableSettings(BaseSettings):
    """Settings in a table of ringback.toml. The prefix of their variables names the table."""

    model_config = SettingsConfigDict(
        extra="forbid", hide_input_in_errors=True, frozen=True, validate_by_name=True
    )


def table_of(model: type[BaseSettings]) -> str | None:
    """Return the table of ringback.toml with these settings; None for the top of the file."""
    return _prefix(model).removeprefix(PREFIX).removesuffix("_").lower() or None


def variable_of(model: type[BaseSettings], setting: str) -> str:
    """Return the environment variable of a setting."""
    alias = model.model_fields[setting].validation_alias
    return alias if isinstance(alias, str) else f"{_prefix(model)}{setting}".upper()


def load(model: type[S], *, file: Path = FILE) -> S:
    """Return the settings of one model, from its table in the file and from the environment.

    Raises:
        InvalidSettingsError: with every fault of this model.
    """
    return _load(model, file, ignored=frozenset())


def load_shared(
    models: Iterable[type[BaseSettings]] = (),
    *,
    storing: Collection[str] = (),
    required: Required | None = None,
    here: bool = True,
    file: Path = FILE,
) -> Settings:
    """Return the shared settings after validating them and those of `models`.

    The services named in `storing` require a database. All settings in `required` must be set.

    here: whether the services run here, where their files and directories must exist.

    Raises:
        InvalidSettingsError: with every fault of all models.
    """
    faults = [
        f"{file}: [{name}] is not the name of a service"
        for name, value in _content(file).items()
        if isinstance(value, dict) and name not in TABLES
    ]
    checked: list[type[BaseSettings]] = [Settings, *models]
    for model in checked:
        try:
            _load(model, file, ignored=frozenset() if here else _MISSING_FILE)
        except InvalidSettingsError as error:
            faults += error.faults
    if storing and "database_url" not in _table(file, None) | EnvSettingsSource(Settings)():
        faults.append(
            f"{DATABASE_URL}: not set, but required by {' and '.join(storing)}."
            f" Set it, for example to {DATABASE_EXAMPLE}"
        )
    faults += [
        f"{variable_of(model, setting)}: not set. {advice}"
        for (model, setting), advice in (required or {}).items()
        if not _is_set(model, setting, file)
    ]
    if faults:
        raise InvalidSettingsError(faults)
    return load(Settings, file=file)


def connectable_host(host: str) -> str:
    """Return the address at which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - binds nothing


def _load(model: type[S], file: Path, *, ignored: Collection[str]) -> S:
    """Load a model. Its error leaves out faults of the types in `ignored`, so it may have none."""
    try:
        return model.model_validate(_table(file, table_of(model)) | EnvSettingsSource(model)())
    except SettingsError as error:
        raise InvalidSettingsError([f"{_prefix(model)}…: {error}"]) from None
    except ValidationError as error:
        raise InvalidSettingsError(
            _fault(fault, model, file)
            for fault in error.errors(include_input=False)
            if fault["type"] not in ignored
        ) from None


def _is_set(model: type[BaseSettings], setting: str, file: Path) -> bool:
    """Return whether a setting has a value, valid or not."""
    environment = {name.upper(): value for name, value in os.environ.items()}
    in_file = _table(file, table_of(model)).get(setting)
    return environment.get(variable_of(model, setting), in_file) not in (None, "")


def _prefix(model: type[BaseSettings]) -> str:
    return model.model_config.get("env_prefix", PREFIX)


def _content(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        return tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettingsError([f"{file}: {error}"]) from None


def _table(file: Path, table: str | None) -> dict[str, Any]:
    content = _content(file)
    if table is None:
        return {key: value for key, value in content.items() if not isinstance(value, dict)}
    values = content.get(table, {})
    if not isinstance(values, dict):
        raise InvalidSettingsError([f"{file}: {table} must be a table: [{table}]"])
    return values


def _fault(fault: Any, model: type[BaseSettings], file: Path) -> str:
    first, *rest = fault["loc"]
    aliases = {variable_of(model, name): name for name in model.model_fields}
    name = aliases.get(first, first)
    variable = variable_of(model, name) if name in model.model_fields else ""
    path = ".".join(map(str, (name, *rest)))
    table = table_of(model)
    where = variable if variable in os.environ else f"{file}{f' [{table}]' if table else ''} {path}"
    if fault["type"] == "extra_forbidden":
        return f"{where}: this setting does not exist"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}"
