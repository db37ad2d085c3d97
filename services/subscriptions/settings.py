"""The settings of subscriptions."""

from typing import Annotated

from pydantic import Field

from shared.settings import TableSettings


class SubscriptionsSettings(TableSettings, env_prefix="RINGBACK_SUBSCRIPTIONS_"):
    """The table `[subscriptions]` of ringback.toml."""

    prefetch: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=2000,
        description="Maximum number of messages in flight from each queue in one worker.",
    )
    batch: Annotated[int, Field(ge=1, le=5000)] = Field(
        default=500, description="Maximum number of user events in one transaction."
    )
    token_lifetime: Annotated[float, Field(gt=0, le=3650)] = Field(
        default=30.0, description="Lifetime of the token of a sign-in, in days."
    )
    # A push reads its event until its last retry, after 28 hours.
    retention: Annotated[float, Field(ge=2, le=3650)] = Field(
        default=30.0,
        description="Retention of user events, messages and finished deliveries, in days; at least"
        " 2, because retries take 28 hours.",
    )
    max_message_bytes: Annotated[int, Field(ge=1024, le=1_048_576)] = Field(
        default=262_144,
        description="Maximum size of a user event in bytes. Larger ones are dead-lettered.",
    )
    max_queued: Annotated[int, Field(ge=100)] = Field(
        default=1000,
        description="Maximum number of messages in the queue `callbacks`. While it is full, due"
        " deliveries wait in the database.",
    )
    disable_after: Annotated[float, Field(gt=0, le=31_536_000)] = Field(
        default=432_000.0,
        validation_alias="RINGBACK_ENDPOINT_DISABLE_AFTER",
        description="Time of continuous failure after which an endpoint is disabled, in seconds.",
    )
    max_endpoints: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=10_000, description="Maximum number of endpoints of one client."
    )
    replay_rate: Annotated[float, Field(ge=0.1, le=10_000)] = Field(
        default=50.0,
        description="Maximum rate of a replay, in messages per second.",
    )
    connections: Annotated[int, Field(ge=4, le=100)] = Field(
        default=12, description="Maximum number of database connections of one worker."
    )
