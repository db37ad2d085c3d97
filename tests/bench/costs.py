"""Parts c and d: memory with 1,000 in flight, and the cost of a retry through the 1 s tier."""

import asyncio
import time
from typing import Final

from tests.bench.rig import PREFETCH, Contender, Rig, Site, median, quantile, rounds
from tests.bench.sending import Burst, burst
from tests.bench.sink import Group
from tests.bench.table import Row, Section, Verdict, at_most

ROUNDS: Final = 4
SECONDS: Final = 30.0
BURST: Final = 2000
# Seconds until the slow targets respond, and for which memory is sampled.
SLOW: Final = 2.0
SAMPLE_SECONDS: Final = 5.0
# Messages a second, far below a sender's limit, so that only the wait itself is measured.
LOW_RATE: Final = 200.0
LOW_RATE_SECONDS: Final = 4.0
MAX_RESIDENT: Final = 150.0  # MB


async def memory(rig: Rig) -> Section:
    """Part c."""
    figures: dict[Contender, tuple[float, float, int]] = {}
    for contender in Contender:
        async with rig.site(contender) as site:
            idle = site.sender.resident()
            await site.warm_up(Group.SLOW, 4 * PREFETCH)  # the lanes of these targets widen
            site.counters.delay.value = SLOW
            await site.feed((Group.SLOW,), 3 * PREFETCH)
            in_flight, resident = await _watch(site)
            site.counters.delay.value = 0.0
            figures[contender] = (idle, resident, in_flight)
    idle, resident, in_flight = figures[Contender.OURS]
    hand_idle, hand_resident, hand_in_flight = figures[Contender.HAND_WRITTEN]
    is_full = in_flight >= 0.95 * PREFETCH
    rows = [
        Row(
            "resident, 1,000 in flight",
            "MB",
            resident,
            hand_resident,
            resident / hand_resident,
            f"under {MAX_RESIDENT:.0f} MB",
            at_most(resident, MAX_RESIDENT) if is_full else Verdict.SHORT,
        ),
        Row("resident after 500 callbacks", "MB", idle, hand_idle, idle / hand_idle),
        Row("measured in flight, maximum", "requests", in_flight, hand_in_flight),
    ]
    return Section("c", "Memory, prefetch 1,000, bodies of 1 kB", "hand-written", rows)


async def _watch(site: Site) -> tuple[int, float]:
    """Return the maximum of requests in flight and the maximum of resident MB."""
    counters = site.counters
    in_flight, resident = 0, 0.0
    end = time.monotonic() + SAMPLE_SECONDS
    while time.monotonic() < end:
        in_flight = max(in_flight, counters.count[Group.SLOW] - counters.responses[Group.SLOW])
        resident = max(resident, site.sender.resident())
        await asyncio.sleep(0.02)
    return in_flight, resident


async def tier(rig: Rig) -> Section:
    """Part d."""
    direct: dict[Contender, list[Burst]] = {each: [] for each in Contender}
    retried: dict[Contender, list[Burst]] = {each: [] for each in Contender}
    waits: dict[Contender, list[float]] = {}
    hops: dict[Contender, list[float]] = {}
    notes = [
        "Ringback adds jitter: it waits 1 to 1.5 s, and the part above 1 s costs another hop",
        f"waits at {LOW_RATE:.0f} messages a second",
    ]
    async with rig.site(Contender.OURS) as ours, rig.site(Contender.HAND_WRITTEN) as baseline:
        sites = {Contender.OURS: ours, Contender.HAND_WRITTEN: baseline}
        for _ in rounds(ROUNDS, SECONDS):
            for contender, site in sites.items():
                direct[contender].append(await burst(site, (Group.HEALTHY,), BURST))
                retried[contender].append(await burst(site, (Group.FLAKY,), BURST, responses=2))
        for contender, site in sites.items():
            numbers = await site.pace((Group.HEALTHY,), LOW_RATE, LOW_RATE_SECONDS)
            expected = site.counters.responses[Group.FLAKY]
            flaky_numbers = await site.pace((Group.FLAKY,), LOW_RATE, LOW_RATE_SECONDS)
            complete = await site.until(Group.FLAKY, expected + 2 * len(flaky_numbers), 20)
            if not complete:
                notes.append("some second attempts took longer than 20 s: the machine is busy")
            waits[contender] = [site.wait(number) * 1e3 for number in numbers]
            hops[contender] = [
                site.counters.last[n] - site.counters.first[n]
                for n in flaky_numbers
                if site.counters.last[n] > site.counters.first[n]
            ]
    o, h = Contender.OURS, Contender.HAND_WRITTEN
    failed_once = {c: median([b.cpu for b in retried[c]]) for c in Contender}
    delivered_once = {c: median([b.cpu for b in direct[c]]) for c in Contender}
    hop = {c: failed_once[c] - 2 * delivered_once[c] for c in Contender}
    rows = [
        Row(
            "CPU: fails once, then delivered",
            "µs",
            failed_once[o],
            failed_once[h],
            failed_once[o] / failed_once[h],
        ),
        Row(
            "CPU: delivered at once",
            "µs",
            delivered_once[o],
            delivered_once[h],
            delivered_once[o] / delivered_once[h],
        ),
        Row("CPU: the hop alone, without the requests", "µs", hop[o], hop[h]),
        Row(
            "wait, publish to first attempt, median",
            "ms",
            quantile(waits[o], 0.5),
            quantile(waits[h], 0.5),
        ),
        Row(
            "wait, publish to first attempt, 99 %",
            "ms",
            quantile(waits[o], 0.99),
            quantile(waits[h], 0.99),
        ),
        Row(
            "wait, first to second attempt, median",
            "s",
            quantile(hops[o], 0.5),
            quantile(hops[h], 0.5),
        ),
        Row(
            "wait, first to second attempt, 99 %",
            "s",
            quantile(hops[o], 0.99),
            quantile(hops[h], 0.99),
        ),
    ]
    return Section("d", "Cost of a retry through the 1 s tier", "hand-written", rows, notes)
