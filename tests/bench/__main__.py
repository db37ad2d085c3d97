"""`python -m tests.bench`: measure the whole table, or parts of it."""

import json
import os
import platform
from datetime import UTC, datetime

import click
import uvloop

from tests.bench.browsers import browsers
from tests.bench.capacity import capacity
from tests.bench.clients import clients
from tests.bench.clustered import clustered
from tests.bench.costs import memory, tier
from tests.bench.expansion import expansion
from tests.bench.fan_out import fan_out
from tests.bench.ingest import ingestion
from tests.bench.journal import beside_delivery, recording
from tests.bench.large import large
from tests.bench.layer import layer
from tests.bench.mailing import mailing
from tests.bench.messages import delivery
from tests.bench.one_recipient import one_recipient
from tests.bench.polling import polling
from tests.bench.rig import Rig, StalledError, rig
from tests.bench.sending import half_hanging, one_worker, two_workers
from tests.bench.statistics import statistics
from tests.bench.table import Section, data, plain
from tests.bench.timing import intake, on_time
from tests.bench.tls import over_tls
from tests.bench.urgent import urgent

PARTS = {
    "a": one_worker,
    "b": half_hanging,
    "c": memory,
    "d": tier,
    "e": two_workers,
    "f": layer,
    "g": intake,
    "h": on_time,
    "i": ingestion,
    "j": delivery,
    "k": expansion,
    "l": one_recipient,
    "m": large,
    "n": over_tls,
    "o": urgent,
    "p": clustered,
    "q": mailing,
    "r": clients,
    "s": statistics,
    "t": polling,
    "u": fan_out,
    "v": capacity,
    "w": recording,
    "x": beside_delivery,
    "y": browsers,
}
# m takes half an hour, and v compares nothing: they are only measured on request.
DEFAULT_PARTS = "a,b,c,d,e,f,g,h,i,j,k,l,n,o,p,q,r,s,t,u,w,x,y"


@click.command()
@click.option("--only", default=DEFAULT_PARTS, help="Parts to run, such as a,b.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def main(only: str, as_json: bool) -> None:  # noqa: FBT001 - click's way
    """Measure Ringback against its alternatives in one run of about sixteen minutes.

    \b
    a  CPU and rate of one worker
    b  healthy callbacks while half of the targets hang
    c  memory with 1,000 in flight
    d  cost of a retry through the 1 s tier
    e  --workers 2
    f  the AMQP layer alone
    g  the scheduler: intake over AMQP and HTTP
    h  the scheduler: timing, against pgqueuer
    i  ingestion: events
    j  delivery: e-mails and SMS
    k  expansion: messages of one posting
    l  expansion: postings to one recipient
    m  the scheduler with ten million callbacks: half an hour, only with --only m
    n  callbacks over TLS, on kept connections and on new ones
    o  urgent e-mails beside a bulk posting
    p  callbacks on a cluster of three brokers
    q  a mailing to 200,000 of a million clients
    r  an import of clients
    s  statistics of mailings, and facts settled
    t  5,000 open polls
    u  fan-out of messages to endpoints
    v  what one callback costs and stores, only with --only v
    w  the journal: attempts stored by one process
    x  the journal: its cost for delivery
    y  fifty browsers on the overview of the console

    Starts a private RabbitMQ and PostgreSQL, a receiver and the measured programs, and stops them.
    Only ratios carry over to another machine. docs/benchmarks.md explains each row.
    """
    parts = only.split(",")
    if unknown := set(parts) - PARTS.keys():
        raise click.BadParameter(f"unknown part {', '.join(sorted(unknown))}. Use parts a to y.")
    try:
        with rig() as shared:
            sections = uvloop.run(_run(shared, parts))
    except StalledError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps({"machine": _machine(), "parts": data(sections)}, indent=2))
    else:
        click.echo(f"{_machine()}\n{plain(sections)}")


async def _run(shared: Rig, parts: list[str]) -> list[Section]:
    sections = []
    for part in parts:
        click.echo(f"measuring {part} …", err=True)
        sections.append(await PARTS[part](shared))
    return sections


def _machine() -> str:
    load = os.getloadavg()
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, load {load[0]:.1f} at the"
        f" end, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()
