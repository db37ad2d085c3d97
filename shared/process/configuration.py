"""Loads the configuration for a command: every fault is reported at once, with exit code 2."""

import os
from collections.abc import Collection, Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Final, TypeGuard, TypeVar

import click
from pydantic_settings import BaseSettings

from shared.registry import SERVICES
from shared.security.settings import SecuritySettings
from shared.settings import (
    PREFIX,
    InvalidSettingsError,
    Required,
    Settings,
    TableSettings,
    load,
    load_shared,
    variable_of,
)

S = TypeVar("S", bound=BaseSettings)

# Variables of commands and of the local stack. They are not in ringback.toml.
OTHER_VARIABLES: Final = frozenset(
    f"{PREFIX}{name}" for name in ("TICKET", "LOCAL_DIRECTORY", "RABBITMQ4_ROOT")
)


class InvalidConfigurationError(click.ClickException):
    """The configuration is wrong. Standard error gets every fault; the exit code is 2."""

    exit_code = 2

    def __init__(self, error: InvalidSettingsError) -> None:
        faults = "\n".join(f"  {fault}" for fault in error.faults)
        super().__init__(f"Cannot start: the configuration is wrong.\n{faults}")


def configured(
    models: Iterable[type[BaseSettings]] = (),
    *,
    storing: Collection[str] = (),
    required: Required | None = None,
    here: bool = True,
) -> Settings:
    """Return the shared settings after validating them and those of `models`.

    The services named in `storing` require a database. All settings in `required` must be set.

    here: whether the services run here, where their files and directories must exist.

    Raises:
        InvalidConfigurationError: with every fault of all models.
    """
    try:
        return load_shared(models, storing=storing, required=required, here=here)
    except InvalidSettingsError as error:
        raise InvalidConfigurationError(error) from None


def configured_table(model: type[S]) -> S:
    """Return the settings of one table, after validating them and the shared settings.

    Raises:
        InvalidConfigurationError: with every fault of both.
    """
    configured([model])
    return load(model)


def unknown_variables() -> list[str]:
    """Return the environment variables that look like a setting, but are not one of any service.

    They are not errors: during an upgrade, old and new versions can share their environment.
    """
    models: list[type[BaseSettings]] = [Settings, SecuritySettings]
    names = [f"{spec.module}.settings" for spec in SERVICES.values()]
    for module in [import_module(name) for name in names if find_spec(name)]:
        models += [each for each in vars(module).values() if _is_table(each)]
    known = {variable_of(model, name) for model in models for name in model.model_fields}
    found = [name for name in os.environ if name.upper().startswith(PREFIX)]
    return sorted(name for name in found if name.upper() not in known | OTHER_VARIABLES)


def _is_table(value: object) -> TypeGuard[type[TableSettings]]:
    return isinstance(value, type) and issubclass(value, TableSettings)
