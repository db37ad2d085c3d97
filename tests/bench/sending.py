"""Parts a, b and e: one worker, one worker with hanging targets, and two workers."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.rig import PREFETCH, Contender, Rig, Site, median, quantile, rounds
from tests.bench.sink import Group
from tests.bench.table import Row, Section, Verdict, at_least, at_most

ROUNDS: Final = 5
# No further round starts after so many seconds, on a busy machine.
SECONDS: Final = 50.0
BURST: Final = 3 * PREFETCH
# Seconds after which the measurement of a slow sender stops.
BURST_TIMEOUT: Final = 15.0
# The open-loop feed offers this share of the rate of a healthy backlog, half of it healthy. Hanging
# targets cost the broker more than healthy ones, and it shares the cores with the sender.
OFFERED: Final = 0.6
# Above this share of the cores in use, the machine limits the rate, not the sender.
MAX_CORE_SHARE: Final = 0.9
# Long enough for requests to time out (10 s) and breakers to open.
PACED_SECONDS: Final = 15.0
TARGET: Final = "at least 0.9"
# Seconds after the last response for acks and facts, which are sent every 20 ms.
SETTLE_SECONDS: Final = 0.3


@dataclass(frozen=True, slots=True)
class Burst:
    """The cost of a burst.

    rate: callbacks per second. cpu: µs of the sender per callback. opened: connections per
    callback.
    """

    rate: float
    cpu: float
    opened: float


async def burst(
    site: Site, groups: Sequence[Group], count: int, *, responses: int = 1, within: float = 60.0
) -> Burst:
    """Queue `count` messages for each group while the sender is stopped, then continue it.

    Measures the first group until each of its messages had so many responses, or for `within`
    seconds.
    """
    group = groups[0]
    before, opened_before = site.counters.responses[group], site.counters.connections[group]
    site.sender.signal(signal.SIGSTOP)
    await site.feed(groups, count * len(groups))
    cpu = site.sender.cpu()
    begin = time.monotonic()
    site.sender.signal(signal.SIGCONT)
    complete = await site.until(group, before + count * responses, within)
    end = site.counters.last_response.value if complete else time.monotonic()
    done = (site.counters.responses[group] - before) / responses
    await asyncio.sleep(SETTLE_SECONDS)
    return Burst(
        rate=done / (end - begin),
        cpu=(site.sender.cpu() - cpu) / max(done, 1) * 1e6,
        opened=(site.counters.connections[group] - opened_before) / max(done, 1),
    )


async def one_worker(rig: Rig) -> Section:
    """Part a."""
    bursts: dict[str, list[Burst]] = {"ours": [], "bound": [], "hand": []}
    async with (
        rig.site(Contender.OURS) as ours,
        rig.site(Contender.HAND_WRITTEN) as baseline,
        rig.site(Contender.OURS, facts_bound=True) as bound,
    ):
        for _ in rounds(ROUNDS, SECONDS, minimum=3):
            for name, site in (("ours", ours), ("hand", baseline), ("bound", bound)):
                bursts[name].append(await burst(site, (Group.HEALTHY,), BURST))
    rows = [
        *compared("a callback", bursts["ours"], bursts["hand"]),
        *compared("a callback, its fact queued", bursts["bound"], bursts["hand"]),
    ]
    count = len(bursts["ours"])
    notes = [f"{count} rounds of {BURST:,} callbacks each, in turn; medians of rounds and ratios"]
    return Section("a", "One worker, every target healthy", "hand-written", rows, notes)


def compared(what: str, ours: Sequence[Burst], others: Sequence[Burst]) -> list[Row]:
    """Return the rows of CPU and rate; a burst and its counterpart are of the same round."""
    pairs = list(zip(ours, others, strict=True))
    cpu = median([our.cpu / other.cpu for our, other in pairs])
    return [
        Row(
            f"CPU for {what}",
            "µs",
            median([our.cpu for our in ours]),
            median([other.cpu for other in others]),
            cpu,
            "at most 1.0 (aim 0.8)",
            at_most(cpu, 1.0),
        ),
        Row(
            f"rate of {what}",
            "/s",
            median([our.rate for our in ours]),
            median([other.rate for other in others]),
            median([our.rate / other.rate for our, other in pairs]),
        ),
    ]


@dataclass(frozen=True, slots=True)
class Paced:
    """Healthy callbacks at a constant rate.

    p50, p99: seconds from publish to arrival. busy: the share of the machine's cores in use by all
    programs.
    """

    rate: float
    p50: float
    p99: float
    busy: float


async def paced(site: Site, groups: Sequence[Group], rate: float, seconds: float) -> Paced:
    """Publish `rate` messages a second for each group, and measure the first group."""
    before = site.counters.responses[groups[0]]
    used, total = _cores()
    begin = time.monotonic()
    numbers = await site.pace(groups, rate * len(groups), seconds)
    await asyncio.sleep(SETTLE_SECONDS)
    passed = time.monotonic() - begin - SETTLE_SECONDS
    done = site.counters.responses[groups[0]] - before
    waits = [site.wait(number) for number in numbers[:: len(groups)]]
    used_then, total_then = _cores()
    return Paced(
        rate=done / passed,
        p50=quantile(waits, 0.5),
        p99=quantile(waits, 0.99),
        busy=(used_then - used) / (total_then - total),
    )


def _cores() -> tuple[int, int]:
    """Return the busy and the total ticks of all cores since the machine started."""
    ticks = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    idle, waiting = ticks[3:5]
    return sum(ticks) - idle - waiting, sum(ticks)


async def half_hanging(rig: Rig) -> Section:
    """Part b."""
    rows: list[Row] = []
    notes = [
        "backlog: all messages are queued before the start; deferring hanging ones costs CPU, too",
        f"paced: {OFFERED:.0%} of a backlog's rate alone; half of it healthy, half hanging",
    ]
    for contender, name in ((Contender.OURS, "ours"), (Contender.HAND_WRITTEN, "hand-written")):
        is_ours = contender is Contender.OURS
        healthy_bursts, mixed_bursts = await _backlog(rig, contender, times=3 if is_ours else 1)
        rate = median([b.rate / a.rate for a, b in zip(healthy_bursts, mixed_bursts, strict=True)])
        rows.append(
            Row(
                f"{name}, backlog: healthy rate",
                "/s",
                median([each.rate for each in mixed_bursts]),
                median([each.rate for each in healthy_bursts]),
                rate,
                TARGET if is_ours else "",
                at_least(rate, 0.9) if is_ours else Verdict.OPEN,
            )
        )
        if is_ours:
            cpu = median([b.cpu / a.cpu for a, b in zip(healthy_bursts, mixed_bursts, strict=True)])
            rows.append(
                Row(
                    f"{name}, backlog: CPU for a healthy one",
                    "µs",
                    median([each.cpu for each in mixed_bursts]),
                    median([each.cpu for each in healthy_bursts]),
                    cpu,
                )
            )
        async with rig.site(contender) as site:
            offered = OFFERED / 2 * (await burst(site, (Group.HEALTHY,), BURST)).rate
            healthy_only = await paced(site, (Group.HEALTHY,), offered, PACED_SECONDS / 4)
            with_hanging = await paced(site, (Group.HEALTHY, Group.HANGING), offered, PACED_SECONDS)
        rate = with_hanging.rate / healthy_only.rate
        free = healthy_only.rate > 0.95 * offered and with_hanging.busy < MAX_CORE_SHARE
        if not free:
            notes.append(
                f"{name}, paced: not judged, {with_hanging.busy:.0%} of the cores were in use"
            )
        rows += [
            Row(
                f"{name}, paced: healthy rate",
                "/s",
                with_hanging.rate,
                healthy_only.rate,
                rate,
                TARGET if is_ours else "",
                at_least(rate, 0.9) if is_ours and free else Verdict.OPEN,
            ),
            Row(
                f"{name}, paced: wait, median", "ms", with_hanging.p50 * 1e3, healthy_only.p50 * 1e3
            ),
            Row(f"{name}, paced: wait, 99 %", "ms", with_hanging.p99 * 1e3, healthy_only.p99 * 1e3),
        ]
    return Section("b", "Half of the targets hang", "healthy alone", rows, notes)


async def _backlog(
    rig: Rig, contender: Contender, *, times: int
) -> tuple[list[Burst], list[Burst]]:
    """Measure bursts of healthy messages alone, and of as many mixed with hanging ones."""
    healthy_bursts, mixed_bursts = [], []
    for _ in rounds(times, SECONDS):
        async with rig.site(contender) as site:
            healthy_bursts.append(await burst(site, (Group.HEALTHY,), BURST))
            both = (Group.HEALTHY, Group.HANGING)
            mixed_bursts.append(await burst(site, both, BURST, within=BURST_TIMEOUT))
    return healthy_bursts, mixed_bursts


async def two_workers(rig: Rig) -> Section:
    """Part e."""
    one: list[Burst] = []
    two: list[Burst] = []
    async with (
        rig.site(Contender.OURS) as single,
        rig.site(Contender.OURS, options=("--workers", "2")) as double,
    ):
        for _ in rounds(ROUNDS, SECONDS / 2):
            one.append(await burst(single, (Group.HEALTHY,), BURST))
            two.append(await burst(double, (Group.HEALTHY,), BURST))
    rate = median([b.rate / a.rate for a, b in zip(one, two, strict=True)])
    cpu = median([b.cpu / a.cpu for a, b in zip(one, two, strict=True)])
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    # Two workers, the broker and the sink each need a core.
    free = cores >= 4 and load < cores
    rows = [
        Row(
            "rate",
            "/s",
            median([each.rate for each in two]),
            median([each.rate for each in one]),
            rate,
            "at least 1.6",
            at_least(rate, 1.6) if free else Verdict.OPEN,
        ),
        Row(
            "CPU for a callback",
            "µs",
            median([b.cpu for b in two]),
            median([a.cpu for a in one]),
            cpu,
        ),
    ]
    notes = [] if free else [f"not judged: {cores} cores, load {load:.1f}; 4 free cores are needed"]
    return Section("e", "--workers 2", "one worker", rows, notes)
