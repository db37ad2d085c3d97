"""`ringback config`: the configuration, explained, from the settings models themselves."""

import json
import textwrap
from collections.abc import Iterator
from enum import Enum
from typing import Any

import click
from pydantic import SecretStr
from pydantic_settings import BaseSettings

from services.cli.run import settings_models
from shared.registry import SERVICES
from shared.settings import Settings, table_of, variable_of

WIDTH = 98


@click.group
def config() -> None:
    """The configuration: environment variables RINGBACK_… over the file ringback.toml."""


@config.command
def example() -> None:
    """Print a ringback.toml with every setting, its meaning and its default.

    \b
    Example:
      ringback config example > ringback.toml
    """
    click.echo(as_toml(), nl=False)


def as_toml() -> str:
    """The text of config.example.toml."""
    lines = [
        "# Every setting of Ringback, with its default. Made by `ringback config example`.",
        "# Ringback reads ringback.toml in the working directory; an environment variable, named",
        "# above each setting, comes before it.",
        *_settings(Settings),
    ]
    models = {table_of(model): model for model in settings_models()}
    for name in ("security", *SERVICES):
        lines += ["", f"[{name}]", *_settings(models[name])]
    return "\n".join(lines) + "\n"


def _settings(model: type[BaseSettings]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield ""
        yield from (f"# {line}" for line in textwrap.wrap(field.description or "", WIDTH))
        default = field.get_default(call_default_factory=True)
        example = field.examples[0] if field.examples else None
        yield f"# {variable_of(model, name)}{'' if example is None else ' (not set by default)'}"
        yield f"#{name} = {toml(default if example is None else example)}"


def toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, SecretStr):
        value = value.get_secret_value()  # a default stands in the code: it is no secret
    if isinstance(value, dict):
        inner = ", ".join(f"{key} = {toml(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value if isinstance(value, bool | int | float) else str(value))
