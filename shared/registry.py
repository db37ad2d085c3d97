"""The registry of services and of channels. Pure data.

Each service is declared here once: its module, its port and its dependencies. So is each channel, a
kind of delivery; its renderer is in services/mailings, its sender in services/delivery.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import GetPydanticSchema
from pydantic_core import core_schema

from shared.contracts.messages import (
    RenderedMessage,
    SendEmail,
    SendSms,
    ascii_domain,
    phone_digits,
)

BROKER: Final = "broker"
DATABASE: Final = "database"


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A service, as the commands, the settings and the deployment see it.

    module: its package; `app.py` in it holds `SERVICE`.
    metrics_port: the default port of /metrics, /healthz and /readyz.
    dependencies: BROKER, DATABASE or other services; it is not ready without them.
    scales: whether several processes can share its work.
    """

    module: str
    metrics_port: int
    dependencies: tuple[str, ...] = ()
    scales: bool = True

    @property
    def name(self) -> str:
        """Return the name in `ringback run NAME` and in the configuration."""
        return self.module.rpartition(".")[2]

    @property
    def schema(self) -> str | None:
        """Return the name of its schema in the database, or None if it stores nothing."""
        return self.name if DATABASE in self.dependencies else None


SERVICES: Final[dict[str, ServiceSpec]] = {
    spec.name: spec
    for spec in (
        ServiceSpec("services.callback", 9101, (BROKER,)),
        ServiceSpec("services.scheduler", 9102, (BROKER, DATABASE)),
        ServiceSpec("services.gateway", 9103, (BROKER, "scheduler")),
        ServiceSpec("services.ingestion", 9104, (BROKER, DATABASE)),
        ServiceSpec("services.mailings", 9105, (BROKER, DATABASE)),
        ServiceSpec("services.delivery", 9106, (BROKER, DATABASE)),
        ServiceSpec("services.subscriptions", 9107, (BROKER, DATABASE)),
        ServiceSpec("services.journal", 9108, (BROKER, DATABASE)),
        ServiceSpec("services.sandbox", 9109, scales=False),
        ServiceSpec("services.console", 9110, (BROKER, DATABASE)),
    )
}


# The priority of a message on its channel: urgent messages are sent before bulk ones.
Priority = Literal["urgent", "bulk"]
URGENT: Final = "urgent"
BULK: Final = "bulk"
PRIORITIES: Final[tuple[Priority, ...]] = (URGENT, BULK)


def _unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Channel:
    """A kind of delivery to a recipient.

    name: the name in `delivery_type`, in facts and in metrics.
    contract: the message that delivery consumes. Its class name is the AMQP type.
    address: the field of the contract that holds the recipient's address.
    user_address: the field of a user that holds it.
    address_label: the address in the reason why a user is skipped ("no phone").
    normalize: turns the user's value into the form that the contract requires.
    """

    name: str
    contract: type[RenderedMessage]
    address: str
    user_address: str
    address_label: str
    normalize: Callable[[Any], Any] = _unchanged

    @property
    def type(self) -> str:
        """Return the AMQP message type."""
        return self.contract.__name__

    @property
    def queues(self) -> Mapping[Priority, str]:
        """Return the work queues that delivery consumes, the one of urgent messages first.

        Each priority has a queue, because quorum queues before RabbitMQ 4.0 have no priorities.
        """
        return {URGENT: f"messages.{self.name}.urgent", BULK: f"messages.{self.name}"}

    @property
    def opt_in(self) -> str:
        """Return the field of a user that must be true before the channel is used."""
        return f"{self.name}_notifications"


CHANNELS: Final[Mapping[str, Channel]] = {
    channel.name: channel
    for channel in (
        Channel("email", SendEmail, "to", "email", "e-mail address", ascii_domain),
        Channel("sms", SendSms, "phone", "phone", "phone", phone_digits),
    )
}

# One of the names in CHANNELS. The JSON Schema is an enum.
ChannelName = Annotated[
    str, GetPydanticSchema(lambda _source, _handler: core_schema.literal_schema([*CHANNELS]))
]
