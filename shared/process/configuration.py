"""What a command says of a wrong configuration: every fault at once, exit code 2."""

from collections.abc import Collection, Mapping

import click
from pydantic_settings import BaseSettings

from shared.settings import InvalidSettingsError, Settings, load_shared


class InvalidConfigurationError(click.ClickException):
    """Names every fault of the configuration on standard error; exit code 2."""

    exit_code = 2

    def __init__(self, error: InvalidSettingsError) -> None:
        faults = "\n".join(f"  {fault}" for fault in error.faults)
        super().__init__(f"the configuration is wrong; nothing was started.\n{faults}")


def configured(
    services: Mapping[str, type[BaseSettings]] | None = None, *, storing: Collection[str] = ()
) -> Settings:
    """The shared settings, with those of these services checked as well.

    For the services named in `storing`, a database must be configured.

    Raises:
        InvalidConfigurationError: with every fault of all of them.
    """
    try:
        return load_shared(services or {}, storing=storing)
    except InvalidSettingsError as error:
        raise InvalidConfigurationError(error) from None
