"""`python -m tests.bench.soak`: check memory and deliveries under a long steady load.

Most targets are healthy; some fail once, some hang and some respond with 410. At the end every
message must be delivered or dead-lettered, as its target requires.
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
from shared.amqp.subscription import ignore_delivery
from shared.contracts import headers
from shared.topology import CALLBACKS, dead_queue
from tests.bench.rig import WARM_UP, Contender, Rig, Site, StalledError, message_id, rig
from tests.bench.sink import Group, SinkCounters

# The targets of ten messages in a row.
MIX: Final = (*[Group.HEALTHY] * 7, Group.FLAKY, Group.HANGING, Group.GONE)
# Seconds after which an undeliverable message expires and is dead-lettered.
LIFETIME: Final = 60.0
# Seconds until the last dead letter: a lifetime and a trip through the 1 m tier.
DEAD_LETTER_TIMEOUT: Final = 150.0
# The share of the run that fills pools and caches; growth is measured after it.
WARM_UP_SHARE: Final = 0.25
MAX_GROWTH: Final = 5.0  # MB after the warm-up

Sample = tuple[float, float]  # seconds since the start, MB


@click.command()
@click.option("--minutes", default=10.0, show_default=True, help="How long to publish.")
@click.option("--rate", default=200.0, show_default=True, help="Messages a second.")
def main(minutes: float, rate: float) -> None:
    """Run the callback service under a steady mixed load.

    Exit code 1 if its memory grows or a message is lost.
    """
    try:
        with rig(messages=int(minutes * 60 * rate) + 2 * WARM_UP) as shared:
            failures = uvloop.run(_soak(shared, minutes * 60, rate))
    except StalledError as error:
        raise click.ClickException(str(error)) from None
    for failure in failures:
        click.echo(f"FAILED: {failure}")
    sys.exit(bool(failures))


async def _soak(shared: Rig, seconds: float, rate: float) -> list[str]:
    async with shared.site(Contender.OURS) as site:
        watching = asyncio.create_task(_watch(site, seconds))
        numbers = await site.pace(MIX, rate, seconds, lifetime=LIFETIME)
        samples = await watching
        click.echo(f"published {len(numbers):,} messages; waiting for the rest …")
        reasons = await _dead_letters(site, numbers)
    return [*_growth(samples), *_account(numbers, reasons, site.counters)]


async def _watch(site: Site, seconds: float) -> list[Sample]:
    """Sample memory once a second, and print a line every half minute."""
    begin = time.monotonic()
    samples: list[Sample] = []
    click.echo("minute  resident MB  CPU s  delivered")
    while (passed := time.monotonic() - begin) < seconds:
        site.sender.check()
        if len(samples) % 30 == 0:
            delivered = (
                site.counters.responses[Group.HEALTHY] + site.counters.responses[Group.FLAKY] // 2
            )
            click.echo(
                f"{passed / 60:6.1f}  {site.sender.resident():11.1f}  {site.sender.cpu():5.1f}"
                f"  {delivered:9,}"
            )
        samples.append((passed, site.sender.resident()))
        await asyncio.sleep(1)
    return samples


async def _dead_letters(site: Site, numbers: Sequence[int]) -> dict[str, str]:
    """Consume the dead-letter queue until no message is missing, or until the timeout.

    Returns the reason of each dead letter by its id.
    """
    reasons: dict[str, str] = {}

    def record(delivery: Delivery) -> None:
        table = codec.decode_properties(delivery.header).headers or {}
        reasons[table[headers.ID]] = table[headers.REASON]

    async with connect(site.url, name="bench") as broker:
        channel, intercepted = await broker.channel(confirms=False)
        intercepted.on_delivery = record
        await channel.basic_consume(dead_queue(CALLBACKS), ignore_delivery, no_ack=True)
        deadline = time.monotonic() + DEAD_LETTER_TIMEOUT
        while time.monotonic() < deadline:
            await asyncio.sleep(1)
            if all(
                _delivered(n, i, site.counters) or message_id(n) in reasons
                for i, n in enumerate(numbers)
            ):
                break
    return reasons


def _delivered(number: int, index: int, counters: SinkCounters) -> bool:
    """Return whether message `number`, published as the `index`-th, got a 200."""
    match MIX[index % len(MIX)]:
        case Group.HEALTHY:
            return bool(counters.first[number])
        case Group.FLAKY:
            return bool(counters.last[number] > counters.first[number])
    return False


def _growth(samples: Sequence[Sample]) -> list[str]:
    steady = samples[int(len(samples) * WARM_UP_SHARE) :]
    slope, _ = statistics.linear_regression(*zip(*steady, strict=True))
    seconds = steady[-1][0] - steady[0][0]
    growth = slope * seconds
    click.echo(
        f"memory: {steady[0][1]:.1f} MB after {steady[0][0] / 60:.1f} minutes, at most"
        f" {max(each for _, each in steady):.1f}, {steady[-1][1]:.1f} at the end; its trend:"
        f" {slope * 60:+.3f} MB a minute (bound: {MAX_GROWTH:.0f} MB in all)"
    )
    if growth <= MAX_GROWTH:
        return []
    return [f"memory grew by {growth:.1f} MB in {seconds:.0f} s, more than {MAX_GROWTH:.0f} MB"]


def _account(
    numbers: Sequence[int], reasons: Mapping[str, str], counters: SinkCounters
) -> list[str]:
    """Print the balance of each group, and return its failures."""
    failures = []
    click.echo(f"{'target':10}{'published':>9}{'delivered':>11}{'dead':>9}{'lost':>7}")
    for group in dict.fromkeys(MIX):
        published = [(i, n) for i, n in enumerate(numbers) if MIX[i % len(MIX)] is group]
        delivered = {n for i, n in published if _delivered(n, i, counters)}
        dead = {n for _, n in published if message_id(n) in reasons}
        lost = len(published) - len(delivered | dead)
        click.echo(
            f"{group.name.lower():10}{len(published):9,}{len(delivered):11,}{len(dead):9,}{lost:7,}"
        )
        if lost:
            failures.append(f"{group.name.lower()}: {lost:,} lost")
        if dead and group in (Group.HEALTHY, Group.FLAKY):
            reason = reasons[message_id(min(dead))]
            failures.append(f"{group.name.lower()}: {len(dead):,} dead, for example: {reason}")
    return failures


if __name__ == "__main__":
    main()
