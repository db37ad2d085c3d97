"""`ringback dead`: lists and shows dead letters, and redrives them."""

import asyncio
import json
import time
from collections.abc import Callable, Collection
from functools import partial
from getpass import getuser
from typing import Any, Final

import click
from pydantic import BaseModel
from tqdm import tqdm

from services.cli.broker import broker_settings, connection, publishing, run_task
from services.cli.output import echo
from shared.amqp import dead_letters as letters
from shared.amqp.connection import BrokerConnection
from shared.amqp.dead_letters import DeadLetter
from shared.amqp.facts import fact_messages
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.publisher import OutgoingMessage, Publisher, UnpublishableError, new_id
from shared.amqp.queue_browser import MAX_PREFETCH, browse_queue
from shared.contracts.journal_facts import LetterRedriven
from shared.process.logs import printable
from shared.settings import Settings
from shared.topology import WORK_QUEUES, dead_queue, work_queue_of

# Publishes in flight.
MAX_IN_FLIGHT: Final = 100
# Messages received ahead without a filter, so that the broker does not wait for acks. A kill during
# a redrive repeats at most these: those in flight, and those whose ack the queue did not apply yet.
PREFETCH: Final = 2 * MAX_IN_FLIGHT
# Seconds that an interrupted redrive waits for the confirms of messages in flight.
CONFIRM_TIMEOUT: Final = 5.0

Filter = Callable[[DeadLetter], bool]


class WorkQueue(click.ParamType[str]):
    """The name of a work queue, or of its dead-letter queue."""

    name = "queue"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name of the work queue."""
        names = [queue.name for queue in WORK_QUEUES]
        name = work_queue_of(str(value))
        if name not in names:
            self.fail(f"{value!r} is not one of: {', '.join(names)}", param, ctx)
        return name


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--limit", type=click.IntRange(min=1), help="Maximum number of messages."),
        click.option("--reason", help="Only reasons that contain this text."),
        click.option(
            "--id", "ids", multiple=True, help="Only the message with this id. Repeatable."
        ),
    ):
        command = option(command)
    return command


@click.group
def dead() -> None:
    """List, show and redrive dead letters.

    Listing removes nothing and keeps the order. QUEUE is a work queue such as `callbacks`, or its
    dead-letter queue, `callbacks.dead`.
    """


@dead.command("list")
@click.argument("queue", type=WorkQueue())
@_filters
@click.option("--oldest", is_flag=True, help="List the oldest instead of the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def list_(  # noqa: PLR0913 - the options of the command
    queue: str,
    ids: tuple[str, ...],
    reason: str | None,
    limit: int | None,
    *,
    oldest: bool,
    as_json: bool,
) -> None:
    """List the newest dead letters: time, id, attempts, target and reason.

    The default limit is 20. The newest message comes last.

    \b
    Examples:
      ringback dead list callbacks
      ringback dead list callbacks --oldest --limit 5
      ringback dead list callbacks --reason 'status 410' --json
    """
    found, total = run_task(
        _find(broker_settings(), queue, _filter(ids, reason), limit or 20, oldest=oldest)
    )
    if as_json:
        for letter in found:
            echo(json.dumps(letter.summary(), ensure_ascii=False))
        return
    for letter in found:
        echo(_row(letter))
    click.echo(f"{len(found)} shown of {total} in {dead_queue(queue)}", err=True)


@dead.command
@click.argument("queue", type=WorkQueue())
@click.argument("id_", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(queue: str, id_: str, *, as_json: bool) -> None:
    """Show one dead letter with its properties, headers and body. Secrets are hidden.

    \b
    Example:
      ringback dead show callbacks 7f3c…
    """
    found, _ = run_task(_find(broker_settings(), queue, _filter((id_,), None), 1, oldest=True))
    if not found:
        raise click.ClickException(
            f"Cannot show message {id_!r}: it is not in {dead_queue(queue)}."
        )
    details = found[0].details()
    if as_json:
        echo(json.dumps(details, ensure_ascii=False))
        return
    for name, value in details.items():
        nested = isinstance(value, dict | list)
        text = json.dumps(value, indent=2, ensure_ascii=False) if nested else printable(str(value))
        echo("\n".join(map(printable, f"{name}: {text}".split("\n"))))


@dead.command
@click.argument("queue", type=WorkQueue())
@_filters
@click.option("--dry-run", is_flag=True, help="Only list the messages to redrive.")
@click.option("--yes", is_flag=True, help="Do not prompt for confirmation.")
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
    """Move dead letters back to their work queue, with the same ids and fresh attempts.

    Each message leaves the dead-letter queue only after the broker has confirmed it in the work
    queue. An interruption, even kill -9, loses nothing, but can repeat a message. Messages that are
    dead-lettered again during the redrive are not redriven again.

    \b
    Examples:
      ringback dead redrive callbacks --dry-run
      ringback dead redrive callbacks --reason 'breaker' --limit 100
      ringback dead redrive callbacks --id 7f3c… --yes
    """
    settings = broker_settings()
    wanted = _filter(ids, reason)
    if dry_run:
        found, _ = run_task(_find(settings, queue, wanted, limit, oldest=True))
        for letter in found:
            echo(json.dumps(letter.summary()) if as_json else _row(letter))
        click.echo(f"{len(found)} messages would be moved to {queue}", err=True)
        return
    count = run_task(_count(settings, queue, wanted, limit))
    if count and not yes:
        click.confirm(f"Move {count} messages to {queue}?", abort=True, err=True)
    moves = Redrive(queue, wanted, count)
    try:
        if count:
            run_task(moves.run(settings))
    finally:
        click.echo(f"{moves.count} of {count} messages moved to {queue}", err=True)
    if as_json:
        echo(json.dumps({"redriven": moves.count}))
    if moves.error is not None:
        raise click.ClickException(
            f"Cannot redrive the other messages: {moves.error}. They stay in {dead_queue(queue)}."
        )
    if moves.unpublishable:
        letter_id, reason = moves.unpublishable[0]
        raise click.ClickException(
            f"Cannot redrive {len(moves.unpublishable)} of the messages, such as {letter_id!r}:"
            f" {reason}."
            f" They stay in {dead_queue(queue)}."
        )


def _filter(ids: tuple[str, ...], reason: str | None) -> Filter | None:
    """Return the filter of the options, or None without a filter."""
    if not ids and reason is None:
        return None
    return partial(letters.matches, ids=frozenset(ids), reason=reason)


def _row(letter: DeadLetter) -> str:
    line = letter.summary()
    count = letter.attempts
    attempts = "" if count is None else f"{count} attempt{'' if count == 1 else 's'}"
    reason = line["reason"].replace("\n", " ")
    at = (line["died_at"] or "?")[:19]
    return printable(f"{at:19}  {letter.id}  {attempts:>11}  {letter.target or '-'}  {reason}")


async def _find(
    settings: Settings, queue: str, wanted: Filter | None, limit: int | None, *, oldest: bool
) -> tuple[list[DeadLetter], int]:
    """Return the oldest or newest letters that pass the filter, and the total number of letters.

    Sorted by time, because reading can change the order of the queue slightly.
    """
    async with connection(settings) as broker, browse_queue(broker, dead_queue(queue)) as browser:
        with tqdm(total=browser.total, unit=" messages", leave=False, disable=None) as bar:
            found: list[DeadLetter] = []
            async for delivery in browser:
                bar.update()
                letter = letters.parse_dead_letter(delivery)
                if wanted is None or wanted(letter):
                    found.append(letter)
                if limit and len(found) > 2 * limit:
                    found = _select(found, limit, oldest=oldest)
    return _select(found, limit, oldest=oldest), browser.total


def _select(found: list[DeadLetter], limit: int | None, *, oldest: bool) -> list[DeadLetter]:
    """Return at most `limit` letters, sorted by time."""
    found = sorted(found, key=lambda letter: letter.died_at or 0)
    if limit is None:
        return found
    return found[:limit] if oldest else found[-limit:]


async def _count(settings: Settings, queue: str, wanted: Filter | None, limit: int | None) -> int:
    """Return the number of letters that pass the filter, at most `limit`."""
    count = 0
    async with connection(settings) as broker, browse_queue(broker, dead_queue(queue)) as browser:
        if wanted is None:
            return min(browser.total, limit or browser.total)
        async for delivery in browser:
            count += wanted(letters.parse_dead_letter(delivery))
            if count == limit:
                break
    return count


class Redrive:
    """Moves letters: each is published, confirmed, and then removed from the dead-letter queue."""

    def __init__(self, queue: str, wanted: Filter | None, limit: int) -> None:
        self.count = 0
        self.error: BaseException | None = None
        self.unpublishable: list[tuple[str, str]] = []  # id and reason
        self._queue = queue
        self._wanted = wanted
        self._limit = limit
        self._facts: list[BaseModel] = []

    async def run(self, settings: Settings) -> None:
        """Move the letters. When cancelled, wait for those in flight."""
        with tqdm(total=self._limit, unit=" messages", leave=False, disable=None) as bar:
            async with publishing(settings) as publisher, connection(settings) as broker:
                await self._move(publisher, broker, bar)

    async def _move(self, publisher: Publisher, broker: BrokerConnection, bar: "tqdm[Any]") -> None:
        window = asyncio.Semaphore(MAX_IN_FLIGHT)
        in_flight: set[asyncio.Future[None]] = set()
        started = 0
        prefetch = PREFETCH if self._wanted is None else MAX_PREFETCH
        async with browse_queue(broker, dead_queue(self._queue), prefetch=prefetch) as browser:

            def ended(delivery: Delivery, letter: DeadLetter, result: asyncio.Future[None]) -> None:
                in_flight.discard(result)
                window.release()
                if result.cancelled():
                    return
                if (error := result.exception()) is not None:
                    self.error = error
                    return
                browser.remove(delivery)
                self.count += 1
                bar.update()
                self._report(publisher, letter)

            try:
                async for delivery in browser:
                    letter = letters.parse_dead_letter(delivery)
                    if self._wanted is not None and not self._wanted(letter):
                        continue
                    await window.acquire()
                    if self.error is not None:
                        break
                    copy = OutgoingMessage(
                        self._queue,
                        letters.redrive_properties(letter, message_id=new_id()),
                        delivery.body,
                    )
                    try:
                        result = publisher.publish(copy)
                    except UnpublishableError as error:
                        self.unpublishable.append((letter.id, str(error)))
                        window.release()
                        continue
                    in_flight.add(result)
                    result.add_done_callback(partial(ended, delivery, letter))
                    started += 1
                    if started == self._limit:
                        break
            finally:
                await _wait(in_flight)
                await _wait(self._send_facts(publisher))

    def _report(self, publisher: Publisher, letter: DeadLetter) -> None:
        """Report a moved letter to the journal, if there is one. A lost fact does no harm."""
        self._facts.append(
            letters.letter_moved(LetterRedriven, self._queue, letter, at=time.time(), actor=_user())
        )
        if len(self._facts) >= MAX_IN_FLIGHT:
            self._send_facts(publisher)

    def _send_facts(self, publisher: Publisher) -> list[asyncio.Future[None]]:
        facts, self._facts = self._facts, []
        return [publisher.publish(message) for message in fact_messages(facts)]


async def _wait(confirms: Collection[asyncio.Future[None]]) -> None:
    if confirms:
        await asyncio.wait(confirms, timeout=CONFIRM_TIMEOUT)


def _user() -> str | None:
    """Return the name of the user of this command, or None if the machine has no name for them."""
    try:
        return getuser()
    except (KeyError, OSError):
        return None
