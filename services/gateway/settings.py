"""Settings of the gateway. Its address is set by `http_host` and `http_port`."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class GatewaySettings(BaseSettings):
    """`RINGBACK_GATEWAY_…`, or the table [gateway]."""

    model_config = SettingsConfigDict(
        env_prefix="RINGBACK_GATEWAY_", extra="forbid", hide_input_in_errors=True, frozen=True
    )

    anonymous: bool = Field(
        default=True, description="Whether requests without a service ticket are accepted."
    )
    request_timeout: Annotated[float, Field(gt=0, le=300)] = Field(
        default=10.0, description="Timeout of a request to a service, in seconds; then 504."
    )
    max_body_bytes: Annotated[int, Field(ge=1024, le=8_388_608)] = Field(
        default=1_048_576, description="Maximum size of a body in bytes (1 MiB); above it, 413."
    )
    max_batch_bytes: Annotated[int, Field(ge=1024, le=8_388_608)] = Field(
        default=8_388_608, description="Maximum size of a batch in bytes (8 MiB); above it, 413."
    )
    example_url: Annotated[str, Field(min_length=1)] = Field(
        default="https://example.com/webhook",
        description="URL that the examples at /docs/ call; `ringback up` sets a sandbox inbox.",
    )
