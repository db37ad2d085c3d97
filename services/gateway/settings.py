"""The settings of the gateway."""

from typing import Annotated

from pydantic import Field

from shared.http.client_address import HeaderName
from shared.settings import TableSettings

PerMinute = Annotated[int, Field(ge=1, le=1_000_000)]


class GatewaySettings(TableSettings, env_prefix="RINGBACK_GATEWAY_"):
    """The table `[gateway]` of ringback.toml."""

    http_host: str = Field(
        default="127.0.0.1",
        validation_alias="RINGBACK_HTTP_HOST",
        description="Address of the HTTP API.",
    )
    http_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=8080,
        validation_alias="RINGBACK_HTTP_PORT",
        description="Port of the HTTP API; 0 chooses a free one.",
    )
    anonymous: bool = Field(
        default=True, description="Whether clients without a service ticket are served."
    )
    request_timeout: Annotated[float, Field(gt=0, le=300)] = Field(
        default=10.0,
        description="Timeout of a request to another service, in seconds. Then the status is 504.",
    )
    rate_limit: Annotated[float, Field(gt=0, le=100_000)] | None = Field(
        default=None,
        description="Requests per second of one client at one process, and at most one second's"
        " worth at once. Beyond that the status is 429. Default: unlimited.",
        examples=[100],
    )
    registrations_per_address: PerMinute = Field(
        default=600,
        description="Maximum number of registrations of messenger users per minute from one"
        " address. This and the following limits apply to each process. Beyond them, the status is"
        " 429.",
    )
    sign_ins_per_address: PerMinute = Field(
        default=600, description="Maximum number of sign-ins per minute from one address."
    )
    sign_ins_per_name: PerMinute = Field(
        default=20, description="Maximum number of sign-ins per minute with one user name."
    )
    messages_per_user: PerMinute = Field(
        default=1200, description="Maximum number of messages per minute from one messenger user."
    )
    messages_per_address: PerMinute = Field(
        default=60_000,
        description="Maximum number of messages of messenger users per minute from one address.",
    )
    callbacks_per_user: PerMinute = Field(
        default=60,
        description="Maximum number of starts and tests of a callback per minute from one messenger"
        " user.",
    )
    polls: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=10_000, description="Maximum number of open polls and streams."
    )
    polls_per_user: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=20, description="Maximum number of open polls and streams of one user."
    )
    polls_per_address: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=10_000,
        description="Maximum number of open polls and streams from one address.",
    )
    address_header: HeaderName | None = Field(
        default=None,
        description="Header in which a proxy reports the address of the client. Its last entry is"
        " used. Default: the address of the connection.",
        examples=["X-Forwarded-For"],
    )
    trust_traceparent: bool = Field(
        default=True,
        description="Whether requests continue the traces of their callers, who then decide whether"
        " these are recorded. Otherwise, each request begins a trace with a link to that of its"
        " caller. Used only while tracing is on.",
    )
    max_body_bytes: Annotated[int, Field(ge=1024, le=8_388_608)] = Field(
        default=1_048_576,
        description="Maximum size of a request body in bytes. Larger ones are rejected with 413.",
    )
    max_batch_bytes: Annotated[int, Field(ge=1024, le=8_388_608)] = Field(
        default=8_388_608, description="Maximum size of a batch in bytes, at most 8 MiB."
    )
    max_event_bytes: Annotated[int, Field(ge=1024, le=8_388_608)] = Field(
        default=262_144,
        description="Maximum size of an event in bytes. Not more than"
        " RINGBACK_INGESTION_MAX_MESSAGE_BYTES, beyond which ingestion dead-letters an event.",
    )
    example_url: Annotated[str, Field(min_length=1)] = Field(
        default="https://example.com/webhook",
        description="URL in the examples at /docs/. `ringback up` sets it to the sandbox.",
    )
