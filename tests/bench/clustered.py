"""Part p: callbacks on a cluster of three brokers, against one broker."""

from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from deploy.local.cluster import NODES, Cluster
from tests.bench.rig import Contender, Rig, rounds
from tests.bench.sending import BURST, Burst, burst, compared
from tests.bench.sink import Group
from tests.bench.table import Section, Verdict

ROUNDS: Final = 5
# No further round starts after so many seconds, on a busy machine.
SECONDS: Final = 30.0


async def clustered(rig: Rig) -> Section:
    """Part p."""
    with ExitStack() as stack:
        cluster = Cluster(rig.directory / "cluster")
        stack.callback(cluster.kill)
        cluster.start()
        return await _compare(rig, replace(rig, broker=cluster))


async def _compare(alone: Rig, together: Rig) -> Section:
    one: list[Burst] = []
    three: list[Burst] = []
    async with (
        together.site(Contender.OURS, facts_bound=True) as clustered_site,
        alone.site(Contender.OURS, facts_bound=True) as single_site,
    ):
        for _ in rounds(ROUNDS, SECONDS, minimum=3):
            for bursts, site in ((three, clustered_site), (one, single_site)):
                bursts.append(await burst(site, (Group.HEALTHY,), BURST))
    rows = [
        replace(row, target="", verdict=Verdict.OPEN)
        for row in compared("a callback, its fact queued", three, one)
    ]
    notes = [
        f"{len(three)} rounds of {BURST:,} callbacks each, in turn; medians of rounds and ratios",
        f"each queue has a copy on each of {NODES} nodes, all of them on the cores of this machine",
    ]
    return Section("p", "Callbacks on a cluster of three", "one broker", rows, notes)
