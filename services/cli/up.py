"""`ringback up`: everything on this machine, under one roof."""

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from pydantic_settings import BaseSettings
from yarl import URL

from services.callback.settings import CallbackSettings
from services.cli import demo
from services.cli.broker import connection, redacted_url, run_task
from services.cli.demo_postings import show_postings
from services.cli.keys import development_keys
from services.cli.migrate import migrate_all
from services.cli.run import settings_models
from services.delivery.settings import DeliverySettings
from services.gateway.settings import GatewaySettings
from services.mailings.settings import MailingsSettings
from services.sandbox.settings import SandboxSettings
from shared.amqp.declare import declare
from shared.postgres.connection import without_password
from shared.postgres.migrations import Schema
from shared.process.child import Child, running
from shared.process.configuration import configured
from shared.process.health import STARTING
from shared.registry import SERVICES
from shared.security.settings import SecuritySettings
from shared.settings import PREFIX, Settings, connectable_host, load, variable_of
from shared.topology import topology

if TYPE_CHECKING:
    from deploy.local.stack import Stack

SANDBOX: Final = "sandbox"
SANDBOX_PORT: Final = f"{PREFIX}SANDBOX_PORT"
SMTP_PORT: Final = f"{PREFIX}SANDBOX_SMTP_PORT"
HTTP_PORT: Final = f"{PREFIX}HTTP_PORT"
# What the sandbox plays for rules and templates, by the hosts in their URLs.
APIS: Final = ("auth", "fastapi", "activity_api")
# Lines of its log that are shown of a service that ended.
LAST_LINES: Final = 20


@click.command
@click.option("--without-sandbox", is_flag=True, help="No receiver to watch, and no demonstration.")
def up(*, without_sandbox: bool) -> None:
    """Start everything on this machine, show what it does, and serve until Ctrl-C.

    Starts a private RabbitMQ and PostgreSQL (on free ports, below .ringback/, disturbing no other
    on this machine), declares the queues, brings the database up to date, and runs all services,
    and the sandbox as a receiver to watch. With RINGBACK_AMQP_URL or RINGBACK_DATABASE_URL set,
    those are used instead. Keys that are not configured are made once, below .ringback/.

    \b
    Examples:
      ringback up
      RINGBACK_AMQP_URL=amqp://guest:guest@127.0.0.1:5672/ ringback up --without-sandbox

    Exit code 0 after Ctrl-C or SIGTERM, 1 if a service ended by itself; its log is shown then.
    """
    names = [name for name in SERVICES if not (without_sandbox and name == SANDBOX)]
    settings = configured(settings_models(names))
    sys.exit(run_task(_up(settings, names)))


@dataclass(frozen=True, slots=True)
class Running:
    """A service that was started: its process, its metrics and its log."""

    name: str
    child: Child
    metrics: str
    log: Path
    ready: asyncio.Event


async def _up(settings: Settings, names: list[str]) -> int:
    stopping = asyncio.Event()

    def told(number: int) -> None:
        if stopping.is_set():
            click.echo("\nStopping at once. `python -m deploy.local stop` stops RabbitMQ, too.")
            os._exit(128 + number)
        click.echo("\nStopping ...")
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told, number)
    async with _stack(settings) as stack:
        code = 0
        if not stopping.is_set():
            code = await _serve(settings, stack, names, stopping)
    click.echo("Stopped.")
    return code


@asynccontextmanager
async def _stack(settings: Settings) -> AsyncIterator["Stack"]:
    """The broker and the database, private where none is configured.

    In a thread, so that a signal is heard meanwhile; it takes effect when they have started.
    """
    try:
        from deploy.local.daemon import LocalStackError  # noqa: PLC0415 - see below
        from deploy.local.stack import start  # noqa: PLC0415
    except ImportError:
        raise click.ClickException(
            "`ringback up` works in a checkout of Ringback, where deploy/local is. Elsewhere, set"
            " RINGBACK_AMQP_URL and start the services: `ringback run callback`."
        ) from None
    given = {
        f"{PREFIX}{name.upper()}": getattr(settings, name)
        for name in ("amqp_url", "database_url")
        if name in settings.model_fields_set
    }
    servers = [
        server
        for server, name in (("RabbitMQ", "amqp_url"), ("PostgreSQL", "database_url"))
        if name not in settings.model_fields_set
    ]
    if servers:
        click.echo(f"Starting a private {' and '.join(servers)} ...")
    context = start(environment=given)
    try:
        stack = await asyncio.to_thread(context.__enter__)
    except LocalStackError as error:
        raise click.ClickException(str(error)) from None
    try:
        yield stack
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


async def _serve(
    settings: Settings, stack: "Stack", names: list[str], stopping: asyncio.Event
) -> int:
    """Run the services until a signal comes or one of them ends; the exit code."""
    settings = settings.model_copy(update={"amqp_url": stack.amqp_url})
    _line("RabbitMQ", stack.amqp_url if stack.broker else redacted_url(stack.amqp_url))
    _line(
        "PostgreSQL", stack.database_url if stack.database else without_password(stack.database_url)
    )
    async with connection(settings) as link:
        await declare(link.connection, topology(settings.queue_type))
    schemas = [Schema.of(SERVICES[name].module) for name in names if SERVICES[name].schema]
    await migrate_all(stack.database_url, schemas, lambda line: click.echo(f"  {line}"))
    environment = _environment(stack, names)
    async with AsyncExitStack() as cleanup:
        # The sandbox starts first and ends last: what is in flight still finds its receiver.
        started = [
            await cleanup.enter_async_context(_service(name, environment, settings))
            for name in sorted(names, key=lambda name: name != SANDBOX)
        ]
        ends = {asyncio.create_task(each.child.wait()): each for each in started}
        stop = asyncio.create_task(stopping.wait())
        story = asyncio.create_task(_story(settings, stack, started, environment))
        cleanup.callback(story.cancel)
        await asyncio.wait((stop, *ends), return_when=asyncio.FIRST_COMPLETED)
        story.cancel()
        stop.cancel()
        if stopping.is_set():
            return 0
        for task, each in ends.items():
            if task.done():
                click.echo(_obituary(each, task.result()), err=True)
        return 1


def _environment(stack: "Stack", names: list[str]) -> dict[str, str]:
    """What the services see: this environment, the stack, keys, and a reachable sandbox."""
    from deploy.local.daemon import CHECKOUT  # noqa: PLC0415 - only in a checkout

    keys = development_keys(load(SecuritySettings), CHECKOUT)
    environment = os.environ | stack.environment | keys
    environment.setdefault(f"{PREFIX}LOG_FORMAT", "text")
    environment |= _ports(GatewaySettings, "http_port")
    if SANDBOX in names:
        environment |= _ports(SandboxSettings, "port", "smtp_port")
        sandbox = f"127.0.0.1:{environment[SANDBOX_PORT]}"
        environment |= (
            _unless_set(CallbackSettings, allowed_networks="127.0.0.0/8")
            | _unless_set(GatewaySettings, example_url=f"http://{sandbox}/hooks/mine")
            | _unless_set(
                DeliverySettings,
                smtp_url=f"smtp://127.0.0.1:{environment[SMTP_PORT]}",
                sms_url=f"http://{sandbox}/sms",
                sms_key=load(SandboxSettings).sms_key.get_secret_value(),
            )
            | _unless_set(
                MailingsSettings,
                sources=",".join([sandbox, *(f"{name}=http://{sandbox}/{name}" for name in APIS)]),
                unsubscribe_url=f"http://{sandbox}/hooks/unsubscribe"
                "?user_id={user_id}&kind={kind}",
            )
        )
    return environment


def _ports(model: type[BaseSettings], *names: str) -> dict[str, str]:
    """Return the variables of these ports. A default that is taken is replaced by a free port."""
    settings = load(model)
    ports = {name: getattr(settings, name) for name in names}
    return {
        variable_of(model, name): str(port if name in settings.model_fields_set else _free(port))
        for name, port in ports.items()
    }


def _unless_set(model: type[BaseSettings], **values: str) -> dict[str, str]:
    """Return the variables of these values, without those of settings that are configured."""
    configured = load(model).model_fields_set
    return {
        variable_of(model, name): value for name, value in values.items() if name not in configured
    }


def _free(port: int) -> int:
    """This port, or a free one if it is taken: several checkouts may run side by side."""
    from deploy.local.daemon import free_port, port_is_free  # noqa: PLC0415 - only in a checkout

    return port if port_is_free(port) else free_port()


@asynccontextmanager
async def _service(
    name: str, environment: Mapping[str, str], settings: Settings
) -> AsyncIterator[Running]:
    from deploy.local.daemon import CHECKOUT  # noqa: PLC0415 - only in a checkout

    log = CHECKOUT / ".ringback" / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    port = _free(SERVICES[name].metrics_port)
    ready = asyncio.Event()

    def changed(child: Child) -> None:
        if child.fault is None:
            _line(name, f"http://127.0.0.1:{port}/readyz")
            ready.set()
        elif child.fault not in (STARTING, "draining"):
            click.echo(f"  {name} is not ready: {child.fault}")

    argv = [sys.executable, "-m", "services", "run", name, "--metrics-port", str(port)]
    with log.open("wb") as output:
        async with running(
            argv,
            environment=environment,
            grace=settings.shutdown_timeout + 1,
            changed=changed,
            output=output,
        ) as child:
            yield Running(name, child, f"http://127.0.0.1:{port}/metrics", log, ready)


def _line(name: str, url: str) -> None:
    click.echo(f"  {name:<11} ready  {url}")


def _obituary(service: Running, code: int) -> str:
    how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
    end = "\n".join(service.log.read_text(errors="replace").splitlines()[-LAST_LINES:])
    return f"\n{service.name} ended {how}. The end of {service.log}:\n{end}"


async def _story(
    settings: Settings, stack: "Stack", services: list[Running], environment: Mapping[str, str]
) -> None:
    """When all is ready: where everything is, the demonstration, and what to try next."""
    for service in services:
        await service.ready.wait()
    gateway = _gateway(environment)
    sandbox = None
    if any(service.name == SANDBOX for service in services):
        sandbox = f"http://127.0.0.1:{environment[SANDBOX_PORT]}"
        try:
            await demo.show_callbacks(settings, sandbox, gateway)
            await show_postings(settings, sandbox, gateway)
        except Exception as error:  # noqa: BLE001 - whatever it was, everything runs
            why = str(error) or f"it took too long ({type(error).__name__})"
            click.echo(f"The demonstration did not come to its end: {why}")
    places = {"try the HTTP interface": f"{gateway}/docs/", "HTTP gateway": gateway}
    if sandbox:
        places["sandbox, what came"] = f"{sandbox}/"
        places["e-mails and SMS"] = f"{sandbox}/mails, {sandbox}/sms"
        places["producers, to press"] = f"{sandbox}/producers"
    places |= {f"{service.name} metrics": service.metrics for service in services}
    if stack.management_url:
        places["RabbitMQ (guest, guest)"] = stack.management_url
    places |= {f"{service.name} log": str(service.log) for service in services}
    click.echo("\nWhere to look:")
    for what, where in places.items():
        click.echo(f"  {what:<24} {where}")
    if sandbox:
        click.echo(_invitation(stack.amqp_url if stack.broker else None, sandbox, gateway))
    click.echo("Everything runs. Ctrl-C stops it.")


def _gateway(environment: Mapping[str, str]) -> str:
    """Where the gateway is found from here."""
    host = connectable_host(load(GatewaySettings).http_host)
    return str(URL.build(scheme="http", host=host, port=int(environment[HTTP_PORT])))


def _invitation(private_url: str | None, sandbox: str, gateway: str) -> str:
    program = Path(sys.argv[0])
    command = "ringback"
    if program.name == command:
        inside = program.is_relative_to(Path.cwd())
        command = str(program.relative_to(Path.cwd()) if inside else program)
    order = (
        f'{{"target_url": "{sandbox}/hooks/mine", "hmac_secret": "your-secret-key",'
        ' "payload": {"hello": "me"}}'
    )
    wish = f'{{"url": "{sandbox}/hooks/mine", "delay": 5, "hmac_secret": "your-secret-key"}}'
    export = f"  export RINGBACK_AMQP_URL={shlex.quote(private_url)}\n" if private_url else ""
    return (
        "\nSend one of your own, and schedule one, in another terminal:\n"
        f"{export}"
        f"  echo '{order}' | {command} send SendCallback\n"
        f"  curl {gateway}/v1/callbacks --json '{wish}'\n"
        f"and see both at {sandbox}/?mailbox=mine . What is scheduled, and what is dead:\n"
        f"  {command} schedule list --url {gateway}\n"
        f"  {command} dead list callbacks\n"
    )
