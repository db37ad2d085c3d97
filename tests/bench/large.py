"""Part m: the scheduler with ten million callbacks, and with a million due at once."""

import time
from collections.abc import AsyncIterator
from typing import Final

from tests.bench.rig import Rig, median, quantile
from tests.bench.table import Row, Section, at_most
from tests.bench.timing import FEW, Site, scheduler_site, steady_lags

# Callbacks that are due tomorrow and stay in the table during the measurement.
MANY: Final = 10_000_000
# Callbacks of one client that are due at one instant.
BACKLOG: Final = 1_000_000
# Measurements of which the median counts, because single ones vary by half.
ROUNDS: Final = 5
# Callbacks of the other client, a second apart while the backlog lasts.
OTHERS: Final = 20
# Seconds to insert and vacuum the backlog, before it is due.
PREPARATION: Final = 180.0


async def _p99(site: Site) -> float:
    return median([quantile(await steady_lags(site), 0.99) for _ in range(ROUNDS)])


async def _others(site: Site) -> AsyncIterator[float]:
    """Yield the lags of one client while another client has a backlog."""
    due = time.time() + PREPARATION
    await site.fill_due(BACKLOG, "bulk", due)
    for lag in await site.fire([due + n for n in range(OTHERS)]):
        yield lag


async def large(rig: Rig) -> Section:
    """Part m."""
    async with scheduler_site(rig, "few") as site:
        await site.fill(FEW)
        few = await _p99(site)
    async with scheduler_site(rig, "large") as site:
        await site.fill(MANY)
        many = await _p99(site)
        index = await site.database.fetchval(
            "SELECT sum(pg_relation_size(indexrelid)) FROM pg_index"
            " WHERE indrelid = 'scheduler.scheduled_callbacks'::regclass"
        )
        table = await site.database.fetchval(
            "SELECT pg_relation_size('scheduler.scheduled_callbacks')"
        )
        lags = [lag async for lag in _others(site)]
    rows = [
        Row(
            f"lag, 99 %, with {MANY:,} waiting",
            "ms",
            many * 1e3,
            few * 1e3,
            many / few,
            "at most 1.3",
            at_most(many / few, 1.3),
        ),
        Row(
            f"longest lag beside {BACKLOG:,} of another client",
            "ms",
            max(lags) * 1e3,
            target="at most 250",
            verdict=at_most(max(lags), 0.25),
        ),
        Row("size of a waiting callback in the hot table", "bytes", float(table) / MANY),
        Row("size of its index entries", "bytes", float(index) / MANY),
    ]
    notes = [f"compared with: {FEW:,} waiting; the median of {ROUNDS} runs of each"]
    return Section("m", "Scheduling: ten million callbacks", f"{FEW:,}", rows, notes)
