"""The services of Ringback: where each one lives, its port and what it depends on. Pure data."""

from dataclasses import dataclass
from typing import Final

BROKER: Final = "broker"
DATABASE: Final = "database"


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A service, as the commands, the settings and the deployment know it.

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
        ServiceSpec("services.delivery", 9106, (BROKER,)),
        ServiceSpec("services.sandbox", 9109, scales=False),
    )
}
