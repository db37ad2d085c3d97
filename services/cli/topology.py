"""`ringback topology`: print, declare, or compare with the broker, every exchange and queue."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

from services.cli.broker import connection, settings_here, shown, work
from shared.amqp import declare as declaring
from shared.process.configuration import configured
from shared.settings import Settings
from shared.topology import Queue, Topology, dead_queue, work_queue_of
from shared.topology import topology as table_for

TTL: Final = "x-message-ttl"


@click.group
def topology() -> None:
    """Everything Ringback declares at the broker, from one table: shared/topology.py.

    Services declare what they need when they start; these commands are for looking and for setting
    a broker up beforehand.
    """


@topology.command
@click.option("--json", "form", flag_value="json", help="As one JSON object.")
@click.option("--mermaid", "form", flag_value="mermaid", help="As a Mermaid graph.")
def show(form: str | None) -> None:
    """Print every exchange, queue and retry tier; needs no broker.

    \b
    Examples:
      ringback topology show
      ringback topology show --json | jq '.queues[].name'
      ringback topology show --mermaid      the graph in docs/topology.md
    """
    table = table_for(configured().queue_type)
    if form == "json":
        click.echo(json.dumps(as_json(table), indent=2))
    elif form == "mermaid":
        click.echo(mermaid(table))
    else:
        click.echo(as_text(table))


@topology.command
def declare() -> None:
    """Declare everything that is not there yet; what is there stays as it is.

    Exit code 1 if something exists with other properties: each is named with the difference.
    """
    settings = settings_here()
    table = table_for(settings.queue_type)
    work(_declare(settings, table))
    click.echo(
        f"{len(table.exchanges)} exchanges and {len(table.queues)} queues"
        f" are there, at {shown(settings.amqp_url)}"
    )


@topology.command
@click.option("--json", "as_object", is_flag=True, help='As {"differences": [...]}.')
def check(*, as_object: bool) -> None:
    """Compare the broker with the table and name each difference; nothing is declared.

    Exit code 0 if there is none, 1 if there is.
    """
    settings = settings_here()
    differences = work(_check(settings))
    if as_object:
        click.echo(json.dumps({"differences": differences}, indent=2))
    elif not differences:
        click.echo(f"everything is as it should be, at {shown(settings.amqp_url)}")
    for difference in () if as_object else differences:
        click.echo(difference)
    raise SystemExit(1 if differences else 0)


async def _declare(settings: Settings, table: Topology) -> None:
    async with connection(settings) as link:
        await declaring.declare(link.connection, table)


async def _check(settings: Settings) -> list[str]:
    async with connection(settings) as link:
        return await declaring.check(link.connection, table_for(settings.queue_type))


def as_json(table: Topology) -> dict[str, Any]:
    """The table as it is declared."""
    return {
        "exchanges": [{"name": e.name, "type": e.type} for e in table.exchanges],
        "queues": [
            {"name": q.name, "arguments": dict(q.arguments), "dead_letters_to": q.routes_to}
            for q in table.queues
        ],
        "bindings": [
            {"exchange": b.exchange, "queue": b.queue, "routing_key": b.routing_key}
            for b in table.bindings
        ],
    }


def as_text(table: Topology) -> str:
    """The table for people."""
    queues = [
        (q.name, _waits(q), q.routes_to or "", " ".join(f"{k}={v}" for k, v in _telling(q)))
        for q in table.queues
    ]
    parts = [
        _columns(("EXCHANGE", "TYPE"), [(e.name, e.type) for e in table.exchanges]),
        _columns(("QUEUE", "HOLDS FOR", "THEN TO", "ARGUMENTS"), queues),
    ]
    if table.bindings:
        bindings = [(b.exchange, b.routing_key, b.queue) for b in table.bindings]
        parts.append(_columns(("FROM EXCHANGE", "ROUTING KEY", "TO QUEUE"), bindings))
    return "\n\n".join(parts)


def _telling(queue: Queue) -> Iterator[tuple[str, str | int]]:
    """The arguments that the other columns do not tell."""
    told = ("x-dead-letter-exchange", "x-dead-letter-routing-key", TTL)
    return ((name, value) for name, value in queue.arguments.items() if name not in told)


def _waits(queue: Queue) -> str:
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
    """The table as a Mermaid graph: who hands messages to whom, and when."""
    lines = ["flowchart LR"]
    lines += [f"    {_node(e.name)}{{{{{e.name}}}}}" for e in table.exchanges]
    lines += [f'    {_node(q.name)}["{q.name}"]' for q in table.queues]
    for binding in table.bindings:
        lines.append(
            f'    {_node(binding.exchange)} -- "{binding.routing_key}" --> {_node(binding.queue)}'
        )
    for queue in table.queues:
        work_queue = work_queue_of(queue.name)
        if queue.routes_to and TTL in queue.arguments:
            tier, target = _node(queue.name), _node(queue.routes_to)
            lines.append(f"    {_node(work_queue)} -- failed --> {tier}")
            lines.append(f'    {tier} -- "after {_waits(queue)}" --> {target}')
        elif queue.name == dead_queue(work_queue):
            lines.append(f'    {_node(work_queue)} -- "given up" --> {_node(queue.name)}')
    return "\n".join(lines)


def _node(name: str) -> str:
    """A Mermaid id; dots are not allowed in one."""
    return "q_" + name.replace(".", "_")
