"""The settings of the callback service."""

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from shared.contracts.callback import Secret, Secrets
from shared.settings import TableSettings

Port = Annotated[int, Field(ge=1, le=65535)]


def _parts(value: Any) -> Any:
    """Return the parts of a comma-separated text, as in the environment; a list stays as it is."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def _networks(value: Any) -> Any:
    """Parse a comma-separated text, as in the environment, or a list."""
    parts = _parts(value)
    if not isinstance(parts, list | tuple):
        raise ValueError("must be networks such as 10.0.0.0/8, separated by commas")  # noqa: TRY004 - pydantic reports a ValueError
    networks, faults = [], []
    for part in parts:
        text = str(part).strip()
        if text:
            try:
                networks.append(ip_network(text))
            except ValueError as error:
                faults.append(str(error))
    if faults:
        raise ValueError(f"{', '.join(faults)}; write a network such as 10.0.0.0/8")
    return tuple(networks)


class CallbackSettings(TableSettings, env_prefix="RINGBACK_CALLBACK_"):
    """The table `[callback]` of ringback.toml."""

    allowed_networks: Annotated[
        tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_networks)
    ] = Field(
        default=(),
        description="Networks that callbacks may reach in addition to the public internet.",
        examples=[["10.0.0.0/8", "fd00::/8"]],
    )
    allowed_ports: Annotated[tuple[Port, ...], NoDecode, BeforeValidator(_parts)] = Field(
        default=(),
        description="Ports that callbacks may use. Default: all.",
        examples=[[80, 443, 8443]],
    )
    secrets: dict[str, Secret | Secrets] = Field(
        default_factory=dict,
        repr=False,
        description="Secrets by name, for `secret_ref`. In the environment: a JSON object.",
        examples=[{"billing": "a-secret", "rotating": ["the-new-one", "the-old-one"]}],
    )
    prefetch: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=1000, description="Maximum number of messages in flight in one worker."
    )
    timeout: Annotated[float, Field(gt=0, le=300)] = Field(
        default=10.0, description="Timeout of one attempt, including the connection, in seconds."
    )
    connect_timeout: Annotated[float, Field(gt=0, le=60)] = Field(
        default=5.0,
        description="Timeout of connecting, within the timeout of the attempt, in seconds.",
    )
    give_up_after: Annotated[float, Field(gt=0)] = Field(
        default=86_400.0, description="Time after which a callback is dead-lettered, in seconds."
    )
    lane_limit: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=100,
        description="Maximum number of requests in flight from one client to one target (scheme,"
        " host, port).",
    )
    breaker_failures: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5, description="Number of failures in a row that open a target's circuit breaker."
    )
    max_message_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=1_048_576,
        description="Maximum size of a message in bytes. Larger ones are dead-lettered.",
    )
    max_targets: Annotated[int, Field(ge=0)] = Field(
        default=200,
        description="Maximum number of values of the metric label target_url. Others become"
        " `other`.",
    )
