"""`python -m tests.bench.soak`: does memory grow under load, and does everything arrive?

A steady feed of healthy targets, some that fail once, some that hang and some that answer 410.
In the end every message is accounted for: delivered, or in the dead queue, as its target has it.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

import click
import uvloop

from shared.amqp import codec
from shared.amqp.connection import connect
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.subscription import never
from shared.contracts import headers
from shared.topology import CALLBACKS, dead_queue
from tests.bench.rig import WARM_UP, Contender, Rig, Site, StalledError, message_id, rig
from tests.bench.sink import Group, Seen

# Of each ten messages: seven arrive at once.
MIX: Final = (*[Group.HEALTHY] * 7, Group.FLAKY, Group.HANGING, Group.GONE)
# Seconds after which a message that can't be delivered expires, and is dead.
LIFETIME: Final = 60.0
# Seconds that everything may take to settle after the feed: a life and a trip through the 1 m tier.
SETTLE: Final = 150.0
# The first part of the run fills pools and caches; growth is judged after it.
SETTLING_IN: Final = 0.25
MOST_GROWTH: Final = 5.0  # MB from then to the end

Sample = tuple[float, float]  # seconds since the start, MB


@click.command()
@click.option("--minutes", default=10.0, show_default=True, help="How long to feed.")
@click.option("--rate", default=200.0, show_default=True, help="Messages a second.")
def main(minutes: float, rate: float) -> None:
    """Run the callback sender under a steady mixed load; exit 1 if it grows or loses anything."""
    try:
        with rig(messages=int(minutes * 60 * rate) + 2 * WARM_UP) as shared:
            faults = uvloop.run(_soak(shared, minutes * 60, rate))
    except StalledError as error:
        raise click.ClickException(str(error)) from None
    for fault in faults:
        click.echo(f"FAILED: {fault}")
    sys.exit(bool(faults))


async def _soak(shared: Rig, seconds: float, rate: float) -> list[str]:
    async with shared.site(Contender.OURS) as site:
        watching = asyncio.create_task(_watch(site, seconds))
        numbers = await site.pace(MIX, rate, seconds, lifetime=LIFETIME)
        samples = await watching
        click.echo(f"fed {len(numbers):,} messages; waiting until all is settled …")
        letters = await _dead_letters(site, numbers)
    return [*_growth(samples), *_account(numbers, letters, site.seen)]


async def _watch(site: Site, seconds: float) -> list[Sample]:
    """Sample memory once a second, and tell a line every half minute."""
    begin = time.monotonic()
    samples: list[Sample] = []
    click.echo("minute  resident MB  CPU s  delivered")
    while (passed := time.monotonic() - begin) < seconds:
        site.sender.check()
        if len(samples) % 30 == 0:
            delivered = site.seen.answered[Group.HEALTHY] + site.seen.answered[Group.FLAKY] // 2
            click.echo(
                f"{passed / 60:6.1f}  {site.sender.resident():11.1f}  {site.sender.cpu():5.1f}"
                f"  {delivered:9,}"
            )
        samples.append((passed, site.sender.resident()))
        await asyncio.sleep(1)
    return samples


async def _dead_letters(site: Site, numbers: Sequence[int]) -> dict[str, str]:
    """Empty the dead queue until every message is accounted for, or time is over: id and reason."""
    letters: dict[str, str] = {}

    def take(delivery: Delivery) -> None:
        told = codec.decode_properties(delivery.header).headers or {}
        letters[told[headers.ID]] = told[headers.REASON]

    async with connect(site.url, name="bench") as link:
        channel, intercepted = await link.channel(confirms=False)
        intercepted.on_delivery = take
        await channel.basic_consume(dead_queue(CALLBACKS), never, no_ack=True)
        deadline = time.monotonic() + SETTLE
        while time.monotonic() < deadline:
            await asyncio.sleep(1)
            if all(
                _delivered(n, i, site.seen) or message_id(n) in letters
                for i, n in enumerate(numbers)
            ):
                break
    return letters


def _delivered(number: int, index: int, seen: Seen) -> bool:
    """Whether message `number`, fed as the `index`-th, was answered with 200."""
    match MIX[index % len(MIX)]:
        case Group.HEALTHY:
            return bool(seen.first[number])
        case Group.FLAKY:
            return bool(seen.last[number] > seen.first[number])
    return False


def _growth(samples: Sequence[Sample]) -> list[str]:
    settled = samples[int(len(samples) * SETTLING_IN) :]
    slope, _ = statistics.linear_regression(*zip(*settled, strict=True))
    seconds = settled[-1][0] - settled[0][0]
    growth = slope * seconds
    click.echo(
        f"memory: {settled[0][1]:.1f} MB after {settled[0][0] / 60:.1f} minutes, at most"
        f" {max(each for _, each in settled):.1f}, {settled[-1][1]:.1f} at the end; its trend:"
        f" {slope * 60:+.3f} MB a minute (bound: {MOST_GROWTH:.0f} MB in all)"
    )
    if growth <= MOST_GROWTH:
        return []
    return [f"memory grew by {growth:.1f} MB in {seconds:.0f} s, more than {MOST_GROWTH:.0f} MB"]


def _account(numbers: Sequence[int], letters: Mapping[str, str], seen: Seen) -> list[str]:
    """Compare what was fed with what came out, and print it; the faults."""
    faults = []
    click.echo(f"{'target':10}{'fed':>9}{'delivered':>11}{'dead':>9}{'lost':>7}")
    for group in dict.fromkeys(MIX):
        fed = [(i, n) for i, n in enumerate(numbers) if MIX[i % len(MIX)] is group]
        delivered = {n for i, n in fed if _delivered(n, i, seen)}
        dead = {n for _, n in fed if message_id(n) in letters}
        lost = len(fed) - len(delivered | dead)
        click.echo(
            f"{group.name.lower():10}{len(fed):9,}{len(delivered):11,}{len(dead):9,}{lost:7,}"
        )
        if lost:
            faults.append(f"{group.name.lower()}: {lost:,} lost")
        if dead and group in (Group.HEALTHY, Group.FLAKY):
            why = letters[message_id(min(dead))]
            faults.append(f"{group.name.lower()}: {len(dead):,} dead, such as: {why}")
    return faults


if __name__ == "__main__":
    main()
