"""`ringback dead`: look into a dead queue, and put its messages back to work."""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import click
from tqdm import tqdm

from services.cli import dead_letters as letters
from services.cli.broker import connection, publishing, settings_here, work
from services.cli.dead_letters import DeadLetter
from services.cli.queue_browser import MOST_HELD, browse_queue
from shared.amqp.connection import BrokerConnection
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.publisher import OutgoingMessage, Publisher, UnpublishableError
from shared.settings import Settings
from shared.topology import WORK_QUEUES, dead_queue, work_queue_of

# Publishes in flight; what a kill in the middle repeats at most.
WINDOW: Final = 200
# Seconds that an interrupted redrive waits for the confirms of what it has sent.
LAST_CONFIRMS: Final = 5.0

Filter = Callable[[DeadLetter], bool]


class WorkQueue(click.ParamType[str]):
    """The name of a work queue, given as it is or as that of its dead queue."""

    name = "queue"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The work queue's name."""
        names = [queue.name for queue in WORK_QUEUES]
        name = work_queue_of(str(value))
        if name not in names:
            self.fail(f"{value!r} is not one of: {', '.join(names)}", param, ctx)
        return name


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--limit", type=click.IntRange(min=1), help="At most so many messages."),
        click.option("--reason", help="Only those whose reason has this text in it."),
        click.option("--id", "ids", multiple=True, help="Only the one with this id; repeatable."),
    ):
        command = option(command)
    return command


@click.group
def dead() -> None:
    """The dead queue of a work queue: what could not be done, each with its reason.

    Looking takes nothing away and leaves the order as it is. QUEUE is a work queue such as
    `callbacks`, or its dead queue, `callbacks.dead`.
    """


@dead.command("list")
@click.argument("queue", type=WorkQueue())
@_filters
@click.option("--oldest", is_flag=True, help="Those that died first instead of last.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
def list_(  # noqa: PLR0913 - the options of the command
    queue: str,
    ids: tuple[str, ...],
    reason: str | None,
    limit: int | None,
    *,
    oldest: bool,
    as_json: bool,
) -> None:
    """List the last to die: when they did, after how many attempts, where to, and why.

    20 of them, unless --limit says otherwise, the last at the end.

    \b
    Examples:
      ringback dead list callbacks
      ringback dead list callbacks --oldest --limit 5
      ringback dead list callbacks --reason 'status 410' --json
    """
    found, total = work(
        _look(settings_here(), queue, _filter(ids, reason), limit or 20, oldest=oldest)
    )
    if as_json:
        for letter in found:
            click.echo(json.dumps(letter.line(), ensure_ascii=False))
        return
    for letter in found:
        click.echo(_row(letter))
    click.echo(f"{len(found)} shown of {total} in {dead_queue(queue)}", err=True)


@dead.command
@click.argument("queue", type=WorkQueue())
@click.argument("id_", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def show(queue: str, id_: str, *, as_json: bool) -> None:
    """Show the message with this ID whole: properties, headers and body, its secrets hidden.

    \b
    Example:
      ringback dead show callbacks 7f3c…
    """
    found, _ = work(_look(settings_here(), queue, _filter((id_,), None), 1, oldest=True))
    if not found:
        raise click.ClickException(f"there is no message {id_!r} in {dead_queue(queue)}.")
    everything = found[0].everything()
    if as_json:
        click.echo(json.dumps(everything, ensure_ascii=False))
        return
    for name, value in everything.items():
        nested = isinstance(value, dict | list)
        text = json.dumps(value, indent=2, ensure_ascii=False) if nested else str(value)
        click.echo(f"{name}: {text}")


@dead.command
@click.argument("queue", type=WorkQueue())
@_filters
@click.option("--dry-run", is_flag=True, help="Only list what would be put back.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@click.option("--json", "as_json", is_flag=True, help='Print {"redriven": N} at the end.')
def redrive(  # noqa: PLR0913 - the options of the command
    queue: str,
    ids: tuple[str, ...],
    reason: str | None,
    limit: int | None,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Put messages back into their work queue, to be tried anew with the same id.

    Each is confirmed in the work queue before it leaves the dead one: an interruption at any
    moment, kill -9 included, loses nothing; at worst a message is delivered twice. What dies again
    meanwhile is not put back a second time.

    \b
    Examples:
      ringback dead redrive callbacks --dry-run
      ringback dead redrive callbacks --reason 'breaker' --limit 100
      ringback dead redrive callbacks --id 7f3c… --yes
    """
    settings = settings_here()
    wanted = _filter(ids, reason)
    if dry_run:
        found, _ = work(_look(settings, queue, wanted, limit, oldest=True))
        for letter in found:
            click.echo(json.dumps(letter.line()) if as_json else _row(letter))
        click.echo(f"{len(found)} would be put back into {queue}", err=True)
        return
    count = work(_count(settings, queue, wanted, limit))
    if count and not yes:
        click.confirm(f"Put {count} messages back into {queue}?", abort=True, err=True)
    done = Redrive(queue, wanted, count)
    try:
        if count:
            work(done.run(settings))
    finally:
        click.echo(f"{done.count} of {count} messages put back into {queue}", err=True)
    if as_json:
        click.echo(json.dumps({"redriven": done.count}))
    if done.fault is not None:
        raise click.ClickException(f"the others stay in {dead_queue(queue)}: {done.fault}")


def _filter(ids: tuple[str, ...], reason: str | None) -> Filter | None:
    """What the options let pass; None where that is everything."""
    if not ids and reason is None:
        return None
    return partial(letters.matches, ids=frozenset(ids), reason=reason)


def _row(letter: DeadLetter) -> str:
    line = letter.line()
    tries = "" if letter.attempts is None else f"tried {letter.attempts}x"
    reason = line["reason"].replace("\n", " ")
    at = (line["died_at"] or "?")[:19]
    return f"{at:19}  {letter.id}  {tries:>9}  {letter.target or '-'}  {reason}"


async def _look(
    settings: Settings, queue: str, wanted: Filter | None, limit: int | None, *, oldest: bool
) -> tuple[list[DeadLetter], int]:
    """The first or the last to die of the letters that are wanted, and how many there are in all.

    By their time of death: each look changes a little where in the queue a message stands.
    """
    async with connection(settings) as link, browse_queue(link, dead_queue(queue)) as walk:
        with tqdm(total=walk.total, unit=" messages", leave=False, disable=None) as bar:
            found: list[DeadLetter] = []
            async for delivery in walk:
                bar.update()
                letter = letters.read(delivery)
                if wanted is None or wanted(letter):
                    found.append(letter)
                if limit and len(found) > 2 * limit:
                    found = _chosen(found, limit, oldest=oldest)
    return _chosen(found, limit, oldest=oldest), walk.total


def _chosen(found: list[DeadLetter], limit: int | None, *, oldest: bool) -> list[DeadLetter]:
    """At most `limit` of them, in the order of their death."""
    found = sorted(found, key=lambda letter: letter.died_at or 0)
    if limit is None:
        return found
    return found[:limit] if oldest else found[-limit:]


async def _count(settings: Settings, queue: str, wanted: Filter | None, limit: int | None) -> int:
    """How many letters are wanted, at most `limit`."""
    count = 0
    async with connection(settings) as link, browse_queue(link, dead_queue(queue)) as walk:
        if wanted is None:
            return min(walk.total, limit or walk.total)
        async for delivery in walk:
            count += wanted(letters.read(delivery))
            if count == limit:
                break
    return count


class Redrive:
    """Moves letters: published, confirmed, and only then taken from the dead queue."""

    def __init__(self, queue: str, wanted: Filter | None, most: int) -> None:
        self.count = 0
        self.fault: BaseException | None = None
        self._queue = queue
        self._wanted = wanted
        self._most = most

    async def run(self, settings: Settings) -> None:
        """Move them. When cancelled, what is in flight is still settled."""
        with tqdm(total=self._most, unit=" messages", leave=False, disable=None) as bar:
            async with publishing(settings) as publisher, connection(settings) as link:
                await self._move(publisher, link, bar)

    async def _move(self, publisher: Publisher, link: BrokerConnection, bar: "tqdm[Any]") -> None:
        window = asyncio.Semaphore(WINDOW)
        flying: set[asyncio.Future[None]] = set()
        begun = 0
        # A margin beside the window: the broker need not wait for our acks.
        hold = 2 * WINDOW if self._wanted is None else MOST_HELD
        async with browse_queue(link, dead_queue(self._queue), hold=hold) as walk:

            def ended(delivery: Delivery, result: asyncio.Future[None]) -> None:
                flying.discard(result)
                window.release()
                if result.cancelled():
                    return
                if (error := result.exception()) is not None:
                    self.fault = error
                    return
                walk.take(delivery)
                self.count += 1
                bar.update()

            try:
                async for delivery in walk:
                    letter = letters.read(delivery)
                    if self._wanted is not None and not self._wanted(letter):
                        continue
                    await window.acquire()
                    if self.fault is not None:
                        break
                    copy = OutgoingMessage(self._queue, letters.revived(letter), delivery.body)
                    try:
                        result = publisher.publish(copy)
                    except UnpublishableError as error:
                        raise click.ClickException(f"message {letter.id!r}: {error}") from None
                    flying.add(result)
                    result.add_done_callback(partial(ended, delivery))
                    begun += 1
                    if begun == self._most:
                        break
            finally:
                if flying:
                    await asyncio.wait(flying, timeout=LAST_CONFIRMS)
