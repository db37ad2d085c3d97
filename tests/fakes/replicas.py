"""Two processes of each service, with default settings."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from tests.fakes.delivering import SMS_KEY
from tests.fakes.gateway import base_url, gateway
from tests.fakes.sandbox import Sandbox
from tests.fakes.service import Service, running
from tests.fakes.system import SECRETS_KEY, migrate_all

# A start takes long while 14 processes and three nodes share two cores.
READY_SECONDS = 120.0


class Replicas(list[Service]):
    """The running processes. `gateways` are the URLs of their HTTP APIs."""

    gateways: tuple[str, ...] = ()

    async def ready(self) -> "Replicas":
        """Wait until all are ready, and check that none has ended."""
        await asyncio.gather(*(service.ready(READY_SECONDS) for service in self))
        return self

    def bugs(self) -> list[str]:
        """Return the log lines that report a bug."""
        return [line["message"] for each in self for line in each.lines if "bug" in line["message"]]


@asynccontextmanager
async def replicas(
    directory: Path, amqp_url: str, database_url: str, sandbox: Sandbox, *names: str
) -> AsyncIterator[Replicas]:
    """Migrate the database, and run two gateways and two processes of each of these services."""
    host = f"{sandbox.url.host}:{sandbox.url.port}"
    with ExitStack() as stack:
        settings = {
            "RINGBACK_DATABASE_URL": database_url,
            "RINGBACK_SECRETS_KEY": SECRETS_KEY,
            "RINGBACK_SOURCES": f"{host},auth=http://{host}/auth",
            "RINGBACK_SMTP_URL": str(sandbox.smtp),
            "RINGBACK_SMS_URL": str(sandbox.url / "sms"),
            "RINGBACK_SMS_KEY": SMS_KEY,
        }
        migrate_all(database_url)
        started = Replicas()
        for name in names * 2:
            arguments = ("-m", "services", "run", name, "--metrics-port", "0")
            started.append(stack.enter_context(running(directory, amqp_url, settings, arguments)))
        gateways = [stack.enter_context(gateway(directory, amqp_url, settings)) for _ in range(2)]
        started += gateways
        started.gateways = tuple([await base_url(each) for each in gateways])
        yield await started.ready()
