"""`ringback bench`: measures an installation with callbacks to a receiver of its own."""

import asyncio
import ipaddress
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import click
from tqdm import tqdm
from yarl import URL

from services.cli.broker import broker_settings, private_broker, publishing, run_task
from services.cli.gateway import Gateway, quoted, without_none
from services.cli.load import (
    NotAcceptedError,
    Publish,
    Receiver,
    Run,
    amqp_publisher,
    group_key,
    http_publisher,
    measure,
    receiving,
)
from services.cli.output import aligned, echo
from services.console.formatting import duration
from shared.amqp.addresses import addresses, redacted
from shared.process.configuration import configured
from shared.process.logs import printable
from shared.settings import connectable_host

# Seconds in which the first callback must arrive.
PROBE_TIMEOUT: Final = 15.0
PROBE_INTERVAL: Final = 0.25
# Maximum number of callbacks, which one command keeps in memory.
MAX_COUNT: Final = 1_000_000
_COLUMNS: Final = {
    "via": "VIA",
    "accepted": "ACCEPTED",
    "accepted_per_second": "ACCEPTED/S",
    "accept_p50": "ACCEPT P50",
    "accept_p99": "ACCEPT P99",
    "received": "RECEIVED",
    "received_per_second": "RECEIVED/S",
    "delay_p50": "DELAY P50",
    "delay_p90": "DELAY P90",
    "delay_p99": "DELAY P99",
    "repeated": "REPEATED",
    "missing": "MISSING",
}
_TIMES: Final = frozenset({"accept_p50", "accept_p99", "delay_p50", "delay_p90", "delay_p99"})
_ONE_DIGIT: Final = 10


@dataclass(frozen=True, slots=True)
class Load:
    """What is published, and where the receiver is.

    listen: host and port of the receiver. target: the URL at which the callback service reaches it,
    None for the address on which it listens. paths: http, amqp or both.
    """

    count: int
    rate: float | None
    in_flight: int
    size: int
    timeout: float
    listen: tuple[str, int]
    target: str | None
    paths: Sequence[str]


def _address(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, int]:  # noqa: ARG001 - click's signature
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65_535:  # noqa: PLR2004 - ports
        raise click.BadParameter("must look like 127.0.0.1:9000")
    return host.strip("[]"), int(port)


@click.command
@click.argument("url")
@click.option(
    "--count",
    type=click.IntRange(1, MAX_COUNT),
    default=1000,
    show_default=True,
    help="Callbacks over HTTP, and as many over AMQP.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Callbacks a second. Default: as fast as they are accepted.",
)
@click.option(
    "--in-flight",
    type=click.IntRange(1, 1000),
    default=50,
    show_default=True,
    help="Maximum number of requests or publishes in flight.",
)
@click.option(
    "--size",
    type=click.IntRange(0, 100_000),
    default=500,
    show_default=True,
    help="Bytes of the payload.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=60.0,
    show_default=True,
    help="Seconds to wait for callbacks after the last one was published.",
)
@click.option(
    "--listen",
    default="127.0.0.1:0",
    show_default=True,
    callback=_address,
    help="Address of the receiver. Port 0 is a free one.",
)
@click.option(
    "--target", help="URL at which the installation reaches the receiver. Default: its address."
)
@click.option(
    "--only",
    type=click.Choice(["http", "amqp"]),
    help="Measure only HTTP or only AMQP. Default: both.",
)
@click.option(
    "--ticket",
    envvar="RINGBACK_TICKET",
    show_envvar=True,
    help="Service ticket of the client. Without a ticket: the anonymous client.",
)
@click.option(
    "--yes", is_flag=True, help="Confirm that an installation on another machine may be loaded."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON object for each of HTTP and AMQP."
)
def bench(
    url: str, only: str | None, ticket: str | None, *, yes: bool, as_json: bool, **load: Any
) -> None:
    """Measure the installation whose gateway is at URL, with callbacks to a receiver of its own.

    The command starts a receiver on this machine. It creates callbacks through the gateway, and
    then publishes as many to RabbitMQ, if RINGBACK_AMQP_URL is set. It prints rates, the time until
    a callback is accepted, and the delay from then to the first byte at the receiver.

    The callback service must be permitted to reach the receiver. For a receiver on its own machine,
    set RINGBACK_CALLBACK_ALLOWED_NETWORKS=127.0.0.0/8 for the callback service, as `ringback up`
    does. For another machine, use --listen and --target.

    Ctrl-C ends the measurement, and prints what was seen. Scheduled callbacks that have not arrived
    are cancelled, those over AMQP expire. The exit code is 1 if any is missing or was not accepted.

    \b
    Examples:
      ringback bench http://127.0.0.1:8080
      ringback bench http://127.0.0.1:8080 --count 20000 --rate 200 --only http
      ringback bench https://ringback.example.com --yes --ticket "$TICKET" \\
             --listen 0.0.0.0:9000 --target http://load.example.com:9000
    """
    gateway = Gateway(url, ticket)
    paths = [only] if only else ["http", "amqp"]
    broker = _broker(url) if "amqp" in paths else None
    if broker is None and "amqp" in paths:
        if only:
            raise click.UsageError(
                "--only amqp needs RINGBACK_AMQP_URL, the installation's broker."
            )
        paths.remove("amqp")
        click.echo("Not measured over AMQP: RINGBACK_AMQP_URL is not set.", err=True)
    brokers = addresses(broker) if broker else ()
    _confirm([url, *([load["target"]] if load["target"] else []), *brokers], yes=yes)
    runs: dict[str, Run] = {}
    try:
        run_task(_bench(Load(**load, paths=paths), gateway, runs))
    except click.Abort:
        click.echo("Interrupted.", err=True)
    _report(runs, as_json=as_json)
    if len(runs) < len(paths) or any(run.missing or run.unpublished for run in runs.values()):
        raise click.exceptions.Exit(1)


def _broker(url: str) -> str | None:
    """Return the URL of the installation's broker, if it is known."""
    settings = configured()
    if "amqp_url" in settings.model_fields_set:
        return settings.amqp_url
    return private_broker() if _is_local(url) else None


def _is_local(url: str) -> bool:
    host = URL(url).host or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _confirm(urls: Sequence[str], *, yes: bool) -> None:
    """Check that another machine may be loaded.

    Raises:
        click.UsageError: it is not confirmed, and standard input is not a terminal.
    """
    remote = [redacted(url) for url in urls if not _is_local(url)]
    if not remote or yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(
            f"{remote[0]} is on another machine. Add --yes if you may load this installation."
        )
    click.confirm(f"Load {' and '.join(remote)}?", abort=True, err=True)


async def _bench(load: Load, gateway: Gateway, runs: dict[str, Run]) -> None:
    """Measure each path in turn. `runs` gets the results, even after a Ctrl-C."""
    receiver = Receiver()
    host, port = load.listen
    async with AsyncExitStack() as stack:
        try:
            port = await stack.enter_async_context(receiving(receiver, host, port))
        except OSError as error:
            raise click.ClickException(
                f"Cannot listen on {host}:{port}: {error.strerror}."
                " Choose another address with --listen."
            ) from None
        own = URL.build(scheme="http", host=connectable_host(host), port=port)
        target = (load.target or str(own)).rstrip("/")
        for via in load.paths:
            async with _publisher(via, load, gateway, target) as publish:
                await _probe(via, publish, receiver, gateway, target)
                run = runs[via] = Run(load.count)
                receiver.expect(run)
                try:
                    await _measure(via, run, publish, receiver, load)
                finally:
                    if via == "http" and (run.missing or run.unpublished):
                        await _cancel(gateway, run)


@asynccontextmanager
async def _publisher(via: str, load: Load, gateway: Gateway, target: str) -> AsyncIterator[Publish]:
    if via == "http":
        async with gateway.session(limit=load.in_flight) as session:
            yield http_publisher(
                session, gateway.base, target, size=load.size, timeout=load.timeout
            )
        return
    async with publishing(broker_settings()) as publisher:
        yield amqp_publisher(publisher, target, size=load.size, timeout=load.timeout)


async def _probe(
    via: str, publish: Publish, receiver: Receiver, gateway: Gateway, target: str
) -> None:
    """Check that one callback arrives.

    Raises:
        click.ClickException: it was not accepted, or did not arrive in time.
    """
    run = Run(1)
    receiver.expect(run)
    try:
        await publish(run, 0)
    except NotAcceptedError as error:
        raise click.ClickException(
            f"Cannot measure over {via.upper()}: the first callback was not accepted:"
            f" {printable(str(error))}. Check the URL, the ticket and `ringback doctor`."
        ) from None
    now = asyncio.get_running_loop().time
    deadline = now() + PROBE_TIMEOUT
    reason = None
    while not run.arrived[0] and now() < deadline and reason is None:
        await asyncio.sleep(PROBE_INTERVAL)
        if via == "http":
            reason = await _failure(gateway, run)
    if run.arrived[0]:
        return
    if via == "http":
        await _cancel(gateway, run)
        hint = f": {reason}" if reason else f" within {PROBE_TIMEOUT:.0f} s"
        raise click.ClickException(
            f"Cannot measure: the first callback did not arrive at {target}{hint}.\n"
            "Set RINGBACK_CALLBACK_ALLOWED_NETWORKS of the callback service to the receiver's"
            " network, such as 127.0.0.0/8,\nor give an address that it reaches with --listen and"
            " --target."
        )
    raise click.ClickException(
        f"Cannot measure over AMQP: the first callback did not arrive within {PROBE_TIMEOUT:.0f} s."
        " Set RINGBACK_AMQP_URL to the broker of this installation, or add --only http."
    )


async def _failure(gateway: Gateway, run: Run) -> str | None:
    """Return why a callback has failed for good, None if it has not."""
    path = f"/v1/groups/{quoted(group_key(run))}/callbacks"
    items, _ = await gateway.list_items(path, {}, 1)
    failed = [item for item in items if item["status"] == "failed"]
    return printable(str(failed[0]["last_error"])) if failed else None


async def _measure(via: str, run: Run, publish: Publish, receiver: Receiver, load: Load) -> None:
    with tqdm(
        total=load.count,
        desc=via,
        unit=" callbacks",
        leave=False,
        disable=not sys.stderr.isatty(),
    ) as bar:
        receiver.on_arrival = bar.update
        await measure(run, publish, rate=load.rate, in_flight=load.in_flight, timeout=load.timeout)


async def _cancel(gateway: Gateway, run: Run) -> None:
    """Cancel the callbacks of a run that have not arrived."""
    path = f"/v1/groups/{quoted(group_key(run))}/callbacks"
    cursor = None
    with suppress(click.ClickException):
        while True:
            query = URL.build(query=without_none(cursor=cursor)).raw_query_string
            cancelled = await gateway.request("DELETE", f"{path}?{query}")
            cursor = cancelled["next_cursor"]
            if cursor is None:  # a request cancels as many as it can in some seconds
                return


def _report(runs: Mapping[str, Run], *, as_json: bool) -> None:
    rows = [{"via": via} | run.figures() for via, run in runs.items()]
    if as_json:
        for row in rows:
            echo(json.dumps(row, ensure_ascii=False))
        return
    if rows:
        cells = [[_cell(name, row[name]) for name in _COLUMNS] for row in rows]
        for line in aligned([list(_COLUMNS.values()), *cells]):
            echo(line)
    for via, run in runs.items():
        for reason, number in run.errors.most_common():
            echo(f"{via}: {number:,} not accepted: {printable(reason)}")


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in _TIMES:
        return duration(value)
    if isinstance(value, float):
        return f"{value:,.1f}" if value < _ONE_DIGIT else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else value
