"""What can be set about delivery."""

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
        default=20, description="Connections to the mail server; each carries one mail at a time."
    )
    smtp_timeout: Annotated[float, Field(gt=0, le=600)] = Field(
        default=60.0, description="Seconds for handing over one e-mail, connecting included."
    )
    sms_requests: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=20, description="Requests in flight to the SMS gateway."
    )
    sms_timeout: Annotated[float, Field(gt=0, le=300)] = Field(
        default=10.0, description="Seconds for one request to it, its whole answer included."
    )
    prefetch: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=500, description="Messages of each way in the hands of one worker."
    )
    breaker_failures: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5, description="Failures in a row that open a way's breaker."
    )
    give_up_after: Annotated[float, Field(gt=0)] = Field(
        default=86_400.0, description="Seconds after which a message is dead; 24 hours."
    )
    max_message_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=4_194_304, description="A larger message is dead at once; 4 MiB."
    )
