"""Settings of delivery."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class DeliverySettings(BaseSettings):
    """The table `[delivery]` of ringback.toml, and `RINGBACK_DELIVERY_…`."""

    model_config = SettingsConfigDict(
        env_prefix="RINGBACK_DELIVERY_", extra="forbid", hide_input_in_errors=True, frozen=True
    )

    smtp_tls: Literal["offered", "required", "off"] = Field(
        default="offered",
        description="STARTTLS on smtp://: if the server offers it, always, or never.",
    )
    smtp_connections: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=20,
        description="Connections to the mail server; each sends one mail at a time.",
    )
    smtp_timeout: Annotated[float, Field(gt=0, le=600)] = Field(
        default=60.0, description="Timeout of one e-mail, in seconds, connecting included."
    )
    sms_requests: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=20, description="Requests in flight to the SMS gateway."
    )
    sms_timeout: Annotated[float, Field(gt=0, le=300)] = Field(
        default=10.0,
        description="Timeout of one request to the SMS gateway, in seconds, response included.",
    )
    prefetch: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=500,
        description="Prefetch of each worker and channel: messages in progress.",
    )
    breaker_failures: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5, description="Consecutive failures that open a channel's circuit breaker."
    )
    give_up_after: Annotated[float, Field(gt=0)] = Field(
        default=86_400.0, description="Seconds after which a message is dead-lettered; 24 hours."
    )
    max_message_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=4_194_304,
        description="Largest message in bytes; a larger one is dead-lettered; 4 MiB.",
    )
