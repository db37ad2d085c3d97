"""The settings of the scheduler."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import NoDecode

from shared.settings import COMMA_SEPARATED, TableSettings


class SchedulerSettings(TableSettings, env_prefix="RINGBACK_SCHEDULER_"):
    """The table `[scheduler]` of ringback.toml."""

    prefetch: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=2000,
        description="Maximum number of messages in flight from each queue in one worker.",
    )
    batch: Annotated[int, Field(ge=1, le=5000)] = Field(
        default=500, description="Maximum number of scheduled callbacks in one statement."
    )
    max_queued: Annotated[int, Field(ge=100)] = Field(
        default=1000,
        description="Maximum number of messages in the queue `callbacks`. While it is full, due"
        " callbacks wait in the database.",
    )
    lease: Annotated[float, Field(ge=1, le=86_400)] = Field(
        default=60.0,
        description="Time after which a dispatch without a result is repeated, in seconds. The time"
        " of its attempts is added.",
    )
    poll: Annotated[float, Field(gt=0, le=60)] = Field(
        default=2.0,
        description="Interval of polls for scheduled callbacks of other workers, in seconds.",
    )
    retention: Annotated[float, Field(ge=1, le=3650)] = Field(
        default=30.0,
        description="Retention of finished scheduled callbacks and their keys, in days.",
    )
    amqp_exchanges: Annotated[tuple[str, ...], NoDecode, COMMA_SEPARATED] = Field(
        default=(),
        description="Exchanges that AMQP notifications may be published to. Default: none.",
        examples=[["reminders", "billing.due"]],
    )
    anonymous: bool = Field(
        default=True, description="Whether clients without a service ticket are served."
    )
    max_message_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=1_048_576,
        description="Maximum size of a message in bytes. Larger ones are dead-lettered, and a"
        " callback whose notification would be larger is rejected. Not more than"
        " RINGBACK_CALLBACK_MAX_MESSAGE_BYTES.",
    )
    connections: Annotated[int, Field(ge=4, le=100)] = Field(
        default=10, description="Maximum number of database connections of one worker."
    )
