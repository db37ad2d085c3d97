"""Loads the configuration for a command: every fault is reported at once, with exit code 2."""

from collections.abc import Collection, Iterable
from typing import TypeVar

import click
from pydantic_settings import BaseSettings

from shared.settings import InvalidSettingsError, Settings, load, load_shared

S = TypeVar("S", bound=BaseSettings)


class InvalidConfigurationError(click.ClickException):
    """The configuration is wrong. Standard error gets every fault; the exit code is 2."""

    exit_code = 2

    def __init__(self, error: InvalidSettingsError) -> None:
        faults = "\n".join(f"  {fault}" for fault in error.faults)
        super().__init__(f"Cannot start: the configuration is wrong.\n{faults}")


def configured(
    models: Iterable[type[BaseSettings]] = (), *, storing: Collection[str] = ()
) -> Settings:
    """Return the shared settings after validating them and those of `models`.

    The services named in `storing` require a database.

    Raises:
        InvalidConfigurationError: with every fault of all models.
    """
    try:
        return load_shared(models, storing=storing)
    except InvalidSettingsError as error:
        raise InvalidConfigurationError(error) from None


def configured_table(model: type[S]) -> S:
    """Return the settings of one table, after validating them and the shared settings.

    Raises:
        InvalidConfigurationError: with every fault of both.
    """
    configured([model])
    return load(model)
