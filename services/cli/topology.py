"""`ringback topology`: prints the exchanges and queues, declares them, or checks the broker."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

from services.cli.broker import broker_settings, connection, run_task
from services.cli.output import echo
from shared.amqp import declare as declaring
from shared.amqp.addresses import redacted
from shared.process.configuration import configured
from shared.settings import Settings
from shared.topology import CALLBACKS, Queue, Topology, dead_queue, work_queue_of
from shared.topology import topology as build_topology

TTL: Final = "x-message-ttl"
# The work queue that the diagram shows with its tiers and its dead-letter queue.
TYPICAL: Final = CALLBACKS
_DEFAULT_EXCHANGE: Final = "default exchange"


@click.group
def topology() -> None:
    """Show, declare or check all exchanges, queues and retry tiers.

    Services declare the queues that they need when they start. These commands inspect a broker, or
    prepare it beforehand. shared/topology.py declares everything in one table.
    """


@topology.command
@click.option("--json", "form", flag_value="json", help="Print one JSON object.")
@click.option("--mermaid", "form", flag_value="mermaid", help="Print an overview for Mermaid.")
def show(form: str | None) -> None:
    """Print every exchange, queue and retry tier. Needs no broker.

    \b
    Examples:
      ringback topology show
      ringback topology show --json | jq '.queues[].name'
      ringback topology show --mermaid      the diagram in docs/topology.md
    """
    table = _table(configured())
    if form == "json":
        echo(json.dumps(as_json(table), indent=2))
    elif form == "mermaid":
        echo(mermaid(table))
    else:
        echo(as_text(table))


@topology.command
def declare() -> None:
    """Declare everything that is missing. Existing queues stay as they are.

    The exit code is 1 if an exchange or queue exists with other properties. Each difference is
    printed.
    """
    settings = broker_settings()
    table = _table(settings)
    run_task(_declare(settings, table))
    echo(
        f"{len(table.exchanges)} exchanges and {len(table.queues)} queues"
        f" exist at {redacted(settings.amqp_url)}"
    )


@topology.command
@click.option("--json", "as_object", is_flag=True, help='Print {"differences": [...]}.')
def check(*, as_object: bool) -> None:
    """Compare the broker with the table, and print each difference. Declares nothing.

    Bindings are not compared, because AMQP cannot list them. `declare` restores missing ones.

    The exit code is 1 if the broker differs.
    """
    settings = broker_settings()
    differences = run_task(_check(settings))
    if as_object:
        echo(json.dumps({"differences": differences}, indent=2))
    elif differences:
        echo("\n".join(differences))
    else:
        echo(f"no differences at {redacted(settings.amqp_url)} (bindings are not compared)")
    raise SystemExit(1 if differences else 0)


def _table(settings: Settings) -> Topology:
    return build_topology(settings.queue_type, backlog=settings.journal_backlog)


async def _declare(settings: Settings, table: Topology) -> None:
    async with connection(settings) as broker:
        await declaring.declare(broker.connection, table)


async def _check(settings: Settings) -> list[str]:
    async with connection(settings) as broker:
        return await declaring.check(broker.connection, _table(settings))


def as_json(table: Topology) -> dict[str, Any]:
    """Return the table as it is declared."""
    return {
        "exchanges": [{"name": e.name, "type": e.type} for e in table.exchanges],
        "queues": [
            {"name": q.name, "arguments": dict(q.arguments), "dead_letters_to": q.dead_letters_to}
            for q in table.queues
        ],
        "bindings": [
            {"exchange": b.exchange, "queue": b.queue, "routing_key": b.routing_key}
            for b in table.bindings
        ],
    }


def as_text(table: Topology) -> str:
    """Return the table in columns."""
    queues = [
        (q.name, _ttl(q), q.dead_letters_to or "", " ".join(f"{k}={v}" for k, v in _others(q)))
        for q in table.queues
    ]
    parts = [
        _columns(("EXCHANGE", "TYPE"), [(e.name, e.type) for e in table.exchanges]),
        _columns(("QUEUE", "TTL", "DEAD LETTERS TO", "OTHER ARGUMENTS"), queues),
    ]
    if table.bindings:
        bindings = [(b.exchange, b.routing_key, b.queue) for b in table.bindings]
        parts.append(_columns(("FROM EXCHANGE", "ROUTING KEY", "TO QUEUE"), bindings))
    return "\n\n".join(parts)


def _others(queue: Queue) -> Iterator[tuple[str, str | int]]:
    """Yield the arguments that have no column of their own."""
    columns = ("x-dead-letter-exchange", "x-dead-letter-routing-key", TTL)
    return ((name, value) for name, value in queue.arguments.items() if name not in columns)


def _ttl(queue: Queue) -> str:
    ttl = queue.arguments.get(TTL)
    return f"{int(ttl) // 1000} s" if ttl is not None else ""


def _columns(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    )
    return "\n".join(lines)


def mermaid(table: Topology) -> str:
    """Return all exchanges, their queues, and one work queue in detail, as a Mermaid graph."""
    lines = ["flowchart LR", f"    {_exchange(_DEFAULT_EXCHANGE)}"]
    lines += [f"    {_exchange(exchange.name)}" for exchange in table.exchanges]
    for queue in table.queues:
        if queue.name != work_queue_of(queue.name):
            continue
        keys: dict[str, list[str]] = {}
        for binding in table.bindings:
            if binding.queue == queue.name:
                keys.setdefault(binding.exchange, []).append(binding.routing_key)
        lines.append(f"    {_queue(queue.name)}")
        target = _id("queue", queue.name)
        for exchange, names in keys.items():
            lines.append(f'    {_id("exchange", exchange)} -- "{", ".join(names)}" --> {target}')
        if not keys:
            lines.append(f"    {_id('exchange', _DEFAULT_EXCHANGE)} --> {target}")
    work_queue, dead = _id("queue", TYPICAL), dead_queue(TYPICAL)
    for queue in table.queues:
        if work_queue_of(queue.name) == TYPICAL and TTL in queue.arguments:
            tier = _id("queue", queue.name)
            lines.append(f"    {_queue(queue.name)}")
            lines.append(f"    {work_queue} -- retried or deferred --> {tier}")
            lines.append(f'    {tier} -. "after {_ttl(queue)}" .-> {work_queue}')
    lines.append(f"    {_queue(dead)}")
    lines.append(f"    {work_queue} -- dead-lettered --> {_id('queue', dead)}")
    return "\n".join(lines)


def _exchange(name: str) -> str:
    return f"{_id('exchange', name)}{{{{{name}}}}}"


def _queue(name: str) -> str:
    return f"{_id('queue', name)}[({name})]"


def _id(kind: str, name: str) -> str:
    """Return a Mermaid id, which allows no dots or spaces."""
    return f"{kind}_{name.replace('.', '_').replace(' ', '_')}"
