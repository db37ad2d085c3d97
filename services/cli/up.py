"""`ringback up`: starts everything on this machine."""

import asyncio
import os
import shlex
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import click
from pydantic_settings import BaseSettings
from yarl import URL

from services.callback.settings import CallbackSettings
from services.cli.broker import connection, run_task
from services.cli.demonstration import Places, demonstrate, real_servers
from services.cli.keys import development_keys
from services.cli.migrate import migrate_all
from services.cli.output import echo
from services.cli.run import settings_models
from services.cli.running_services import RunningService, describe_end, run_service, show_ready
from services.console.settings import ConsoleSettings
from services.delivery.settings import DeliverySettings
from services.gateway.settings import GatewaySettings
from services.mailings.settings import MailingsSettings
from services.sandbox.settings import OIDC_CLIENT_ID, OIDC_PATH, SandboxSettings
from shared.amqp.addresses import redacted
from shared.amqp.declare import DECLARE_TIMEOUT, declare
from shared.postgres.migrations import Schema
from shared.postgres.url import without_password
from shared.process.configuration import configured, unknown_variables
from shared.registry import SERVICES
from shared.security.settings import SecuritySettings
from shared.settings import Settings, connectable_host, load, variable_of
from shared.topology import topology

if TYPE_CHECKING:
    from deploy.local.stack import Stack

SANDBOX: Final = "sandbox"
CONSOLE: Final = "console"
SANDBOX_PORT: Final = variable_of(SandboxSettings, "port")
SMTP_PORT: Final = variable_of(SandboxSettings, "smtp_port")
HTTP_PORT: Final = variable_of(GatewaySettings, "http_port")
CONSOLE_PORT: Final = variable_of(ConsoleSettings, "port")
ISSUER: Final = variable_of(ConsoleSettings, "oidc_issuer")
# The APIs that the sandbox simulates, by the hosts in the URLs of rules and templates.
APIS: Final = ("auth", "fastapi", "activity_api")


@click.command
@click.option(
    "--without-sandbox", is_flag=True, help="Start without the sandbox and the demonstration."
)
def up(*, without_sandbox: bool) -> None:
    """Start everything on this machine, show a demonstration, and serve until Ctrl-C.

    The command starts a private RabbitMQ and PostgreSQL, declares the queues and applies the
    migrations. Then it starts all services and the sandbox, which shows what it receives. Data,
    logs and keys are in .ringback/. If a default port is taken, a free one is used.

    Set RINGBACK_AMQP_URL and RINGBACK_DATABASE_URL to use your own servers, and
    RINGBACK_LOCAL_DIRECTORY to use another directory. With your own RabbitMQ, mail server
    (RINGBACK_SMTP_URL), SMS gateway or sources, the demonstration sends no e-mails and no SMS.

    \b
    Examples:
      ringback up
      RINGBACK_AMQP_URL=amqp://guest:guest@127.0.0.1:5672/ ringback up --without-sandbox

    A service that is killed is started again. The exit code is 0 after Ctrl-C or SIGTERM. It is 1
    if a service ended by itself; the end of its log is shown.
    """
    names = [name for name in SERVICES if not (without_sandbox and name == SANDBOX)]
    settings = configured(settings_models(names))
    if without_sandbox and load(ConsoleSettings).oidc_issuer is None:
        names.remove(CONSOLE)
        echo(f"The console is left out: {ISSUER} is not set, so nobody could sign in.")
    for variable in unknown_variables():
        click.echo(f"Warning: {variable} is not a setting. See config.example.toml.", err=True)
    sys.exit(run_task(_up(settings, names)))


async def _up(settings: Settings, names: list[str]) -> int:
    stopping = asyncio.Event()

    def stop(number: int) -> None:
        if stopping.is_set():
            echo("\nStopped at once. `python -m deploy.local stop` stops RabbitMQ and PostgreSQL.")
            os._exit(128 + number)
        echo("\nStopping ...")
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    async with _stack(settings) as stack:
        code = 0
        if not stopping.is_set():
            code = await _serve(settings, stack, names, stopping)
    echo("Stopped.")
    return code


@asynccontextmanager
async def _stack(settings: Settings) -> AsyncIterator["Stack"]:
    """Start the broker and the database that are not configured.

    They start in a thread, so that signals are received. A signal takes effect once they run.
    """
    try:
        from deploy.local.daemon import LocalStackError  # noqa: PLC0415 - only in a checkout
        from deploy.local.stack import start  # noqa: PLC0415
    except ImportError:
        raise click.ClickException(
            "Cannot start a private RabbitMQ: this is not a checkout of Ringback. Set"
            " RINGBACK_AMQP_URL and start each service with `ringback run`."
        ) from None
    servers = {"amqp_url": "RabbitMQ", "database_url": "PostgreSQL"}
    configured_urls = {
        variable_of(Settings, name): getattr(settings, name)
        for name in servers
        if name in settings.model_fields_set
    }
    private = [server for name, server in servers.items() if name not in settings.model_fields_set]
    if private:
        echo(f"Starting a private {' and '.join(private)} ...")
    context = start(environment=configured_urls)
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
    """Run the services until a signal is received or a service ends; return the exit code."""
    settings = settings.model_copy(update={"amqp_url": stack.amqp_url})
    if stack.broker:
        _refuse_real_servers_for_an_interrupted_demonstration()
    show_ready("RabbitMQ", stack.amqp_url if stack.broker else redacted(stack.amqp_url))
    show_ready(
        "PostgreSQL", stack.database_url if stack.database else without_password(stack.database_url)
    )
    await _declare(settings)
    schemas = [Schema.of(SERVICES[name].module) for name in names if SERVICES[name].schema]
    await migrate_all(stack.database_url, schemas, lambda line: echo(f"  {line}"))
    async with AsyncExitStack() as cleanup:
        reserve = cleanup.enter_context(_reserved_ports())
        environment = _environment(stack, names, reserve)
        _save_gateway_url(_gateway_url(environment))
        # The sandbox starts first and stops last, so requests in flight still reach it.
        started = [
            await cleanup.enter_async_context(run_service(name, environment, reserve, settings))
            for name in sorted(names, key=lambda name: name != SANDBOX)
        ]
        ends = {service.ended: service for service in started}
        stop = asyncio.create_task(stopping.wait())
        introduction = asyncio.create_task(_introduce(settings, stack, started, environment))
        cleanup.callback(introduction.cancel)
        await asyncio.wait((stop, *ends), return_when=asyncio.FIRST_COMPLETED)
        introduction.cancel()
        stop.cancel()
        if stopping.is_set():
            return 0
        for task, service in ends.items():
            if task.done():
                click.echo(describe_end(service, task.result()), err=True)
        return 1


async def _declare(settings: Settings) -> None:
    """Declare the queues. A RabbitMQ that has just started may not have started its stream yet."""
    table = topology(settings.queue_type, backlog=settings.journal_backlog)
    deadline = time.monotonic() + DECLARE_TIMEOUT
    while True:
        try:
            async with connection(settings) as broker:
                return await declare(broker.connection, table)
        except ConnectionResetError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)


def _reserved_ports() -> AbstractContextManager[Callable[[int], int]]:
    from deploy.local.daemon import reserved_ports  # noqa: PLC0415 - only in a checkout

    return reserved_ports()


def _save_gateway_url(url: str) -> None:
    from deploy.local.stack import save_gateway_url  # noqa: PLC0415 - only in a checkout

    save_gateway_url(url)


def _gateway_url(environment: Mapping[str, str]) -> str:
    host = connectable_host(load(GatewaySettings).http_host)
    return str(URL.build(scheme="http", host=host, port=int(environment[HTTP_PORT])))


def _environment(stack: "Stack", names: list[str], reserve: Callable[[int], int]) -> dict[str, str]:
    """Return the environment of the services: ours, the stack, keys, and a reachable sandbox."""
    from deploy.local.daemon import LOCAL_DIRECTORY  # noqa: PLC0415 - only in a checkout

    keys = development_keys(load(SecuritySettings), LOCAL_DIRECTORY)
    environment = os.environ | stack.environment | keys
    environment |= _chosen_ports(GatewaySettings, ["http_port"], reserve)
    environment |= _chosen_ports(ConsoleSettings, ["port"], reserve)
    environment |= _unless_set(Settings, journal_bodies="all")
    environment |= _unless_set(SecuritySettings, operators="operator")
    if SANDBOX not in names:
        return environment
    environment |= _chosen_ports(SandboxSettings, ["port", "smtp_port"], reserve)
    sandbox = f"127.0.0.1:{environment[SANDBOX_PORT]}"
    return (
        environment
        | _sandbox_sign_in(sandbox)
        | _unless_set(CallbackSettings, allowed_networks="127.0.0.0/8")
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
            unsubscribe_url=f"http://127.0.0.1:{environment[HTTP_PORT]}/v1/unsubscribe",
        )
    )


def _sandbox_sign_in(sandbox: str) -> dict[str, str]:
    """Return the variables with which users of the console sign in at the sandbox."""
    if load(ConsoleSettings).oidc_issuer is not None:
        return {}
    values = {
        "oidc_issuer": f"http://{sandbox}{OIDC_PATH}",
        "oidc_client_id": OIDC_CLIENT_ID,
        "oidc_client_secret": load(SandboxSettings).oidc_secret.get_secret_value(),
    }
    return {variable_of(ConsoleSettings, name): value for name, value in values.items()}


def _chosen_ports(
    model: type[BaseSettings], names: list[str], reserve: Callable[[int], int]
) -> dict[str, str]:
    """Return the variables of these ports: as configured, otherwise the default or a free one."""
    settings = load(model)
    ports = {name: getattr(settings, name) for name in names}
    return {
        variable_of(model, name): str(port if name in settings.model_fields_set else reserve(port))
        for name, port in ports.items()
    }


def _unless_set(model: type[BaseSettings], **values: str) -> dict[str, str]:
    """Return the variables of these values, except for settings that are configured."""
    configured_names = load(model).model_fields_set
    return {
        variable_of(model, name): value
        for name, value in values.items()
        if name not in configured_names
    }


async def _introduce(
    settings: Settings,
    stack: "Stack",
    services: list[RunningService],
    environment: Mapping[str, str],
) -> None:
    """Show the demonstration, all URLs and what to try next, once every service is ready."""
    for service in services:
        await service.ready.wait()
    gateway = _gateway_url(environment)
    console = load(ConsoleSettings).url or f"http://127.0.0.1:{environment[CONSOLE_PORT]}"
    sandbox = None
    if any(service.name == SANDBOX for service in services):
        sandbox = f"http://127.0.0.1:{environment[SANDBOX_PORT]}"
        places = Places(sandbox, gateway, page=sandbox, console=console)
        await _demonstrate(settings, stack, places)
    addresses = {}
    if any(service.name == CONSOLE for service in services):
        addresses["console"] = f"{console}/"
    addresses |= {"HTTP API, to try": f"{gateway}/docs/", "HTTP gateway": gateway}
    if sandbox:
        addresses["sandbox, webhooks"] = f"{sandbox}/"
        addresses["sandbox, e-mails and SMS"] = f"{sandbox}/mails, {sandbox}/sms"
        addresses["sandbox, event producers"] = f"{sandbox}/producers"
    addresses |= {f"{service.name} metrics": service.metrics for service in services}
    if stack.management_url:
        addresses["RabbitMQ (guest, guest)"] = stack.management_url
    addresses["logs"] = str(services[0].log.with_name("*.log"))
    echo("\nWhere to look:")
    for name, address in addresses.items():
        echo(f"  {name:<24} {address}")
    if sandbox:
        echo(_next_steps(stack.amqp_url if stack.broker else None, sandbox, gateway))
    echo("Everything is running. Press Ctrl-C to stop.")


async def _demonstrate(settings: Settings, stack: "Stack", places: Places) -> None:
    real = real_servers()
    if stack.broker is None:  # other services may consume its queues
        real.append(variable_of(Settings, "amqp_url"))
    if not real:
        _interrupted_demonstration().touch()
    try:
        await demonstrate(settings, places, movies_event=uuid4().hex, real=real)
    except click.ClickException as error:  # the services keep running
        echo(error.message)
    else:
        if not real:
            _interrupted_demonstration().unlink()


def _refuse_real_servers_for_an_interrupted_demonstration() -> None:
    """Raise an error if e-mails of a demonstration may wait in the private broker."""
    if (real := real_servers()) and _interrupted_demonstration().exists():
        raise click.ClickException(
            "Cannot start: e-mails of an interrupted demonstration may wait in the private"
            f" RabbitMQ, and {real[0]} is set. Run `ringback up` without it until the demonstration"
            " ends, or delete the data: `python -m deploy.local clean`."
        )


def _interrupted_demonstration() -> Path:
    """Return the file that exists from the start of a demonstration to its end."""
    from deploy.local.stack import DIRECTORY  # noqa: PLC0415 - only in a checkout

    return DIRECTORY / "demonstration"


def _next_steps(private_url: str | None, sandbox: str, gateway: str) -> str:
    """Return commands to try in another terminal."""
    program = Path(sys.argv[0])
    command = "ringback"
    if program.name == command:
        inside = program.is_relative_to(Path.cwd())
        command = str(program.relative_to(Path.cwd()) if inside else program)
    send = (
        f'{{"target_url": "{sandbox}/hooks/mine", "hmac_secret": "your-secret-key",'
        ' "payload": {"hello": "me"}}'
    )
    schedule = f'{{"url": "{sandbox}/hooks/mine", "delay": 5, "hmac_secret": "your-secret-key"}}'
    export = f"  export RINGBACK_AMQP_URL={shlex.quote(private_url)}\n" if private_url else ""
    return (
        "\nSend a callback of your own, and schedule one, in another terminal:\n"
        f"{export}"
        f"  echo '{send}' | {command} send SendCallback\n"
        f"  curl {gateway}/v1/callbacks --json '{schedule}'\n"
        f"Both arrive at {sandbox}/?mailbox=mine . List scheduled callbacks and dead letters:\n"
        f"  {command} schedule list\n"
        f"  {command} dead list callbacks\n"
    )
