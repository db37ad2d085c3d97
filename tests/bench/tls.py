"""Part n: callbacks over TLS, on kept connections and with a new connection for each."""

from collections import defaultdict
from typing import Final

from tests.bench.rig import PREFETCH, Contender, Rig, median, rounds
from tests.bench.sending import Burst, burst, compared
from tests.bench.sink import Group
from tests.bench.table import Row, Section

ROUNDS: Final = 5
# No further round starts after so many seconds, on a busy machine.
SECONDS: Final = 50.0
BURSTS: Final = {Group.TLS: 3 * PREFETCH, Group.TLS_CLOSING: 2 * PREFETCH}
KINDS: Final = {Group.TLS: "kept connection", Group.TLS_CLOSING: "new connection"}


async def over_tls(rig: Rig) -> Section:
    """Part n."""
    trusting = {"SSL_CERT_FILE": str(rig.authority)}
    ours: dict[Group, list[Burst]] = defaultdict(list)
    by_hand: dict[Group, list[Burst]] = defaultdict(list)
    async with (
        rig.site(Contender.OURS, environment=trusting) as our_site,
        rig.site(Contender.HAND_WRITTEN, environment=trusting) as baseline,
    ):
        for _ in rounds(ROUNDS, SECONDS, minimum=3):
            for group, count in BURSTS.items():
                for bursts, site in ((ours, our_site), (by_hand, baseline)):
                    # Both close idle connections, so open them again just before the burst.
                    await site.warm_up(group, PREFETCH)
                    bursts[group].append(await burst(site, (group,), count))
    rows: list[Row] = []
    for group, kind in KINDS.items():
        rows += [
            *compared(f"a callback, {kind}", ours[group], by_hand[group]),
            Row(
                f"connections opened, {kind}",
                "per 1,000",
                median([each.opened * 1000 for each in ours[group]]),
                median([each.opened * 1000 for each in by_hand[group]]),
            ),
        ]
    kept, new = BURSTS.values()
    notes = [
        f"{len(ours[Group.TLS])} rounds of {kept:,} and {new:,} callbacks, in turn; medians",
        "both verify the certificate of the receiver; its authority is that of the benchmark",
    ]
    return Section("n", "Callbacks over TLS", "hand-written", rows, notes)
