"""What can be set about the scheduler."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def _names(value: Any) -> Any:
    """Accept a comma-separated text, as the environment gives it, besides a list."""
    if isinstance(value, str):
        return tuple(name for part in value.split(",") if (name := part.strip()))
    return value


class SchedulerSettings(BaseSettings):
    """The table `[scheduler]` of ringback.toml, and `RINGBACK_SCHEDULER_…`."""

    model_config = SettingsConfigDict(
        env_prefix="RINGBACK_SCHEDULER_", extra="forbid", hide_input_in_errors=True, frozen=True
    )

    prefetch: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=2000, description="Messages in flight from each queue for one worker."
    )
    batch: Annotated[int, Field(ge=1, le=5000)] = Field(
        default=500, description="Events in one statement."
    )
    lease: Annotated[float, Field(ge=1, le=86_400)] = Field(
        default=60.0,
        description="Seconds, beyond what its tries can take, after which a dispatch that nothing"
        " was heard of is fired again.",
    )
    poll: Annotated[float, Field(gt=0, le=60)] = Field(
        default=2.0, description="Seconds between two looks for events that other workers took in."
    )
    retention: Annotated[float, Field(ge=1, le=3650)] = Field(
        default=30.0, description="Days for which an event that has ended is kept, and its keys."
    )
    amqp_exchanges: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        default=(),
        description="Exchanges that notifications by amqp may go to; none unless named.",
        examples=[["reminders", "billing.due"]],
    )
    anonymous: bool = Field(
        default=True, description="Whether callers without a service ticket are served."
    )
    max_message_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=1_048_576, description="A larger message is dead at once; 1 MiB."
    )
    connections: Annotated[int, Field(ge=4, le=100)] = Field(
        default=10, description="Connections to the database for one worker."
    )
