"""What can be set about the gateway; where it listens is `http_host` and `http_port`."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class GatewaySettings(BaseSettings):
    """`RINGBACK_GATEWAY_…`, or the table [gateway]."""

    model_config = SettingsConfigDict(
        env_prefix="RINGBACK_GATEWAY_", extra="forbid", hide_input_in_errors=True, frozen=True
    )

    anonymous: bool = Field(
        default=True, description="Whether callers without a service ticket are served."
    )
    request_timeout: Annotated[float, Field(gt=0, le=300)] = Field(
        default=10.0, description="Seconds to wait for a service's answer; then 504."
    )
    max_body_bytes: Annotated[int, Field(ge=1024, le=8_388_608)] = Field(
        default=1_048_576, description="A larger body is refused (413); 1 MiB."
    )
    max_batch_bytes: Annotated[int, Field(ge=1024, le=8_388_608)] = Field(
        default=8_388_608, description="The same for a batch; 8 MiB, which RabbitMQ takes."
    )
    example_url: Annotated[str, Field(min_length=1)] = Field(
        default="https://example.com/webhook",
        description="What the examples at /docs/ call; `ringback up` has them call the sandbox.",
    )
