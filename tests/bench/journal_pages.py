"""Reads of the journal with ten million entries: `python -m tests.bench.journal_pages [ENTRIES]`.

It fills a private database, also with a million dead letters, which takes minutes. For each read
it prints the CPU time of Python and PostgreSQL together, and the median and the maximum of its
duration, in milliseconds. CPU time also says something on a busy machine. `--explain` prints the
plan of each search as well.
"""

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import asyncpg
import click

from deploy.local.database import Database as Server
from services.journal.attempts import search, store
from services.journal.attempts.search import Search
from services.journal.audit.store import Audit
from services.journal.dead.index import LetterIndex
from services.journal.dead.letters import LetterReader
from services.journal.dead.reasons import reason_key
from services.journal.dead.requests import DeadRequests
from services.journal.durations import BUCKETS
from services.journal.jobs.store import Jobs
from services.journal.partitions import Partitions
from shared.amqp.rpc_binding import Handler
from shared.postgres.pool import Database
from shared.topology import CALLBACKS
from tests.fakes.journal_reads import OPERATOR, Reads, journal_reads

ENTRIES: Final = 10_000_000
DAYS: Final = 14
ROUNDS: Final = 30
# A callback that recurs every second, and what is hard to find: a client, a target and a reason.
RECURRING: Final = "00000000-0000-4000-8000-000000000001"
_RARE: Final = "rare"
_RARE_TARGET: Final = "https://rare.example:443"

# Of four entries, one is `scheduled`, and three are attempts. Two attempts of a hundred fail. There
# are 200 targets and 50 clients.
_FILL: Final = f"""
INSERT INTO journal.entries (
    at, kind, duration, attempt, dispatch, status_code, outcome, schedule_id, callback_id,
    client_id, target, trace_id, group_key, event_key, reason
)
SELECT $1::timestamptz + (n - $2) * ($4::interval / ($3 - $2)),
    CASE WHEN attempted THEN 'attempt' ELSE 'scheduled' END,
    CASE WHEN attempted THEN 0.02 END,
    CASE WHEN attempted THEN 1 END,
    1,
    CASE WHEN attempted THEN CASE WHEN failed THEN 503 ELSE 200 END END,
    CASE WHEN attempted THEN CASE WHEN failed THEN 'failed' ELSE 'delivered' END END,
    CASE WHEN n % 50 = 0 THEN '{RECURRING}'::uuid ELSE md5((n / 4)::text)::uuid END,
    CASE WHEN attempted THEN
        CASE WHEN n % 50 = 0 THEN '{RECURRING}.' || n ELSE md5((n / 4)::text)::uuid::text END
    END,
    CASE WHEN n % 1000000 = 3 THEN '{_RARE}' ELSE 'client-' || n % 50 END,
    CASE WHEN n % 1000000 = 3 THEN '{_RARE_TARGET}'
        ELSE 'https://target-' || n % 200 || '.example:443' END,
    md5((n / 8)::text),
    CASE WHEN NOT attempted THEN 'group-' || n % 1000 END,
    CASE WHEN NOT attempted THEN 'event-' || n END,
    CASE WHEN attempted AND failed THEN
        CASE WHEN n % 5000000 = 3 THEN 'rare' ELSE 'the receiver responded with status 503' END
    END
FROM (
    SELECT n, n % 4 > 0 AS attempted, (n * 7919) % 997 < 20 OR n % 5000000 = 3 AS failed
    FROM generate_series($2::bigint, $3::bigint - 1) AS n
) numbers
"""  # noqa: S608 - constants
# The figures of 200 targets in each of the last $1 minutes.
FILL_MINUTES: Final = f"""
INSERT INTO journal.minutes (target, client_id, minute, delivered, failed, buckets)
SELECT 'https://target-' || t || '.example:443', 'client-' || t % 50,
    date_trunc('minute', now()) - m * interval '1 minute', 40, t % 3,
    array_fill(1::bigint, ARRAY[{BUCKETS}])
FROM generate_series(0, 199) AS t, generate_series(0, $1::integer - 1) AS m
"""  # noqa: S608 - constants
# A million dead letters of one queue in 20,000 groups: 20 reasons and 1,000 targets.
LETTERS: Final = 1_000_000
_REASON: Final = "gave up after 5 attempts: the receiver responded with 507"
_FILL_LETTERS: Final = f"""
INSERT INTO journal.letters (
    queue, letter_id, logical_id, client_id, target, reason, reason_key, trace_id, at
)
SELECT 'callbacks', md5(n::text), md5((n / 2)::text),
    CASE WHEN n % 100000 = 3 THEN '{_RARE}' ELSE 'client-' || n % 50 END,
    'https://target-' || n % 1000 || '.example:443',
    'gave up after 5 attempts: the receiver responded with ' || 500 + n / 1000 % 20,
    'gave up after # attempts: the receiver responded with ' || 500 + n / 1000 % 20,
    md5((n / 8)::text), now() - ($1 - n) * interval '1 second'
FROM generate_series(0, $1::bigint - 1) AS n
"""  # noqa: S608 - constants
_COUNT_LETTERS: Final = """
INSERT INTO journal.letter_counts (queue, reason_key, target, count)
SELECT queue, reason_key, target, count(*) FROM journal.letters GROUP BY queue, reason_key, target
"""

SEARCHES: Final[dict[str, dict[str, Any]]] = {
    "latest": {},
    "failed": {"status": "failed"},
    "status 503 of a target": {"status": "503", "target": "https://target-7.example:443"},
    "a target": {"target": "https://target-7.example:443"},
    "a rare target": {"target": _RARE_TARGET},
    "a client": {"client_id": "client-7"},
    "a rare client": {"client_id": _RARE},
    "failed of a client": {"client_id": "client-7", "status": "failed"},
    "a rare reason": {"reason": "rare"},
    "a status that never occurs": {"status": "418"},
    "a reason of a client that never occurs": {"client_id": "client-7", "reason": "never"},
    "a target of another client": {
        "client_id": "client-7",
        "target": "https://target-8.example:443",
    },
    "a trace": {"trace_id": "c4ca4238a0b923820dcc509a6f75849b"},
    "a group": {"group_key": "group-8"},
    "an event key": {"event_key": "event-4004"},
    "a span in the middle": {
        "since": (datetime.now(UTC) - timedelta(days=7)).isoformat(),
        "until": (datetime.now(UTC) - timedelta(days=6)).isoformat(),
    },
}
OTHERS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "attempts of a callback": ("ReadAttempts", {"id": "c4ca4238-a0b9-2382-0dcc-509a6f75849b"}),
    "timeline of a callback": ("ReadTimeline", {"id": "c4ca4238-a0b9-2382-0dcc-509a6f75849b"}),
    "attempts that recur": ("ReadAttempts", {"id": RECURRING}),
    "timeline that recurs": ("ReadTimeline", {"id": RECURRING}),
    "timeline of an occurrence": ("ReadTimeline", {"id": f"{RECURRING}.1050"}),
    "unknown callback": ("ReadTimeline", {"id": "ffffffff-ffff-4fff-8fff-ffffffffffff"}),
    "tail": ("Tail", {"after": 1_000}),
    "tail's position": ("Tail", {}),
    "clients": ("ListClientIds", {}),
    "targets of an hour": ("ListTargets", {}),
    "targets of three hours": ("ListTargets", {"minutes": 180}),
    "a target by minute": (
        "ReadTarget",
        {"target": "https://target-7.example:443", "minutes": 1440},
    ),
    "dead letters by reason": ("GroupDead", {"queue": CALLBACKS, "group_by": "reason"}),
    "dead letters by target": ("GroupDead", {"queue": CALLBACKS, "group_by": "target"}),
    "dead letters": ("ListDead", {"queue": CALLBACKS}),
    "dead letters of a group": (
        "ListDead",
        {"queue": CALLBACKS, "filter": {"reason": reason_key(_REASON)}},
    ),
    "dead letters of a target": (
        "ListDead",
        {"queue": CALLBACKS, "filter": {"target": "https://target-7.example:443"}},
    ),
    "dead letters of a rare client": (
        "ListDead",
        {"queue": CALLBACKS, "filter": {"client_id": _RARE}},
    ),
    "count of a group before an action": (
        "StartRedrive",
        {"queue": CALLBACKS, "move": {"filter": {"reason": reason_key(_REASON)}, "dry_run": True}},
    ),
}


async def fill(reads: Reads, url: str, entries: int) -> None:
    """Fill the tables, with the indexes created afterwards."""
    first = datetime.now(UTC) - timedelta(days=DAYS - 1)
    days = [(first + timedelta(days=day)).date() for day in range(DAYS)]
    await Partitions(reads.database).ensure(days)
    connection = await asyncpg.connect(url)
    try:
        indexes = await connection.fetch(
            "SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS sql"
            " FROM pg_index WHERE indrelid = 'journal.entries'::regclass AND NOT indisprimary"
        )
        for index in indexes:
            await connection.execute(f"DROP INDEX {index['name']}")
        share = entries // DAYS
        begin = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        for day in range(DAYS):
            start = begin - timedelta(days=DAYS - 1 - day)
            length = (
                timedelta(days=1) if day < DAYS - 1 else datetime.now(UTC) - start
            ) - timedelta(seconds=1)
            await connection.execute(_FILL, start, day * share, (day + 1) * share, length)
        await connection.execute("SET maintenance_work_mem = '1GB'")
        for index in indexes:
            await connection.execute(index["sql"].replace(" ON ONLY ", " ON "))
        await connection.execute(FILL_MINUTES, 1440)
        await connection.execute("VACUUM (ANALYZE) journal.entries")
        await connection.execute(_FILL_LETTERS, LETTERS)
        await connection.execute(_COUNT_LETTERS)
        for table in ("minutes", "letters", "letter_counts"):
            await connection.execute(f"VACUUM (ANALYZE) journal.{table}")
    finally:
        await connection.close()


def _of_dead_letters(database: Database) -> Mapping[str, Handler]:
    """Return the handlers of dead letters. None of these reads one in its queue."""
    return DeadRequests(
        database,
        LetterIndex(database),
        Jobs(database, Audit(database)),
        LetterReader("", name=""),
        asyncio.Semaphore(1),
        wake=lambda: None,
    ).handlers()


async def _cpu(reads: Reads) -> float:
    """Return the CPU time that this process and its backends have used, in milliseconds."""
    backends = await reads.database.fetch(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    )
    ticks = sum(_ticks(backend["pid"]) for backend in backends)
    return 1000 * (time.process_time() + ticks / os.sysconf("SC_CLK_TCK"))


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except FileNotFoundError:
        return 0
    return int(fields[11]) + int(fields[12])


async def _timed(
    reads: Reads, operation: str, request: dict[str, Any]
) -> tuple[float, list[float], Any]:
    times = []
    before = await _cpu(reads)
    for _ in range(ROUNDS):
        started = time.perf_counter()
        result = await reads(operation, OPERATOR, **request)
        times.append(1000 * (time.perf_counter() - started))
    return (await _cpu(reads) - before) / ROUNDS, times, result


def _found(result: Any) -> str:
    """Return what a read has found: how many items, or why none."""
    if not isinstance(result, dict):
        return str(result.code)
    if "matching" in result:
        return f"{result['matching']:,} letters"
    return f"{len(result.get('items', ()))} items"


async def measure(reads: Reads) -> None:
    """Print how long each read takes."""
    reads.handlers |= _of_dead_letters(reads.database)
    click.echo(f"{'':40} {'CPU, ms':>8} {'median':>8} {'maximum':>8}")
    requests = {name: ("ListAttempts", given) for name, given in SEARCHES.items()} | OTHERS
    for name, (operation, given) in requests.items():
        cpu, times, result = await _timed(reads, operation, given)
        click.echo(f"{name:40} {cpu:8.1f} {median(times):8.1f} {max(times):8.1f}  {_found(result)}")
    pages, cursor, slowest = 0, None, 0.0
    while pages < ROUNDS * 4:
        started = time.perf_counter()
        page = await reads("ListAttempts", OPERATOR, reason="never", cursor=cursor)
        slowest = max(slowest, 1000 * (time.perf_counter() - started))
        pages, cursor = pages + 1, page["next_cursor"]
        if cursor is None:
            break
    click.echo(f"{'pages of a search for nothing':40} {slowest:26.1f}  {pages} pages")


async def explain(reads: Reads) -> None:
    """Print the plan of each kind of search."""
    for made in (
        Search(),
        Search(failed=True),
        Search(target="https://target-7.example:443"),
        Search(target="https://target-7.example:443", failed=True),
        Search(client_id="client-7"),
        Search(client_id="client-7", failed=True),
        Search(trace_id="c4ca4238a0b923820dcc509a6f75849b"),
    ):
        sql, values = search.driven(store.SQL["search"], made)
        async with reads.database.transaction() as connection:
            rows = await connection.fetch(
                f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) {sql}",
                *store.NEWEST,
                *(store.WINDOW, made.since, 101, *made.filters, *values),
            )
        click.echo(made)
        click.echo("\n".join(f"    {row[0]}" for row in rows if "never executed" not in row[0]))


async def main(entries: int, *, plans: bool) -> None:
    """Fill a private database, and measure."""
    with TemporaryDirectory(prefix="journal-pages-") as directory:
        server = Server(Path(directory) / "database", durable=False)
        server.start()
        try:
            url = server.create_database("journal")
            async with journal_reads(url) as reads:
                started = time.monotonic()
                await fill(reads, url, entries)
                click.echo(f"{entries:,} entries filled in {time.monotonic() - started:.0f} s")
                await measure(reads)
                if plans:
                    await explain(reads)
        finally:
            server.stop(immediate=True)


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if argument.isdigit()]
    asyncio.run(main(int(given[0]) if given else ENTRIES, plans="--explain" in sys.argv))
