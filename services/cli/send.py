"""`ringback send`: publish messages, validated first and confirmed by the broker."""

import asyncio
import codecs
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Final

import click
from pydantic import ValidationError
from tqdm import tqdm

from services.cli.broker import publishing, settings_here, work
from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, Publisher, new_id
from shared.contracts.context import field_errors
from shared.contracts.message_types import MESSAGE_TYPES, MessageType
from shared.settings import Settings

# Publishes in flight: enough that nobody waits for a round trip, few enough to repeat.
WINDOW: Final = 500
FAULTS_SHOWN: Final = 50
# Seconds in which a broker that is lost in the middle has to be back; its restart takes ten.
RETURN: Final = 30.0


@dataclass(frozen=True, slots=True)
class Document:
    """One message of the input. `line` is where it begins; `id` is its logical id."""

    line: int
    body: bytes
    id: str
    message_id: str
    routing_key: str


@click.command(epilog=f"Types: {', '.join(MESSAGE_TYPES)}.")
@click.argument("type_", metavar="TYPE", type=click.Choice(list(MESSAGE_TYPES)))
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each message.")
def send(type_: str, file: IO[bytes], *, as_json: bool) -> None:
    """Publish the message in FILE, or many as JSON lines; without FILE from standard input.

    Everything is checked first: if one message is wrong, each wrong field of each line is named and
    nothing is sent. A message's id is printed once the broker has confirmed it. After an
    interruption, send again what has no printed id: at worst it arrives twice.

    \b
    Examples:
      echo '{"target_url": "https://example.com/hook", "hmac_secret": "s3cret",
             "payload": {"hello": "world"}}' | ringback send SendCallback
      ringback send SendCallback order.json
      ringback send SendCallback orders.jsonl > ids.txt
      echo '{"delay": 3600, "url": "https://example.com/hook", "group_key": "user-7",
             "event_key": "reminder-1"}' | ringback send ScheduleCallback
      echo '{"group_key": "user-7", "event_key": "reminder-1"}' | ringback send CancelCallback
      echo '{"to": "user@mail.com", "subject": "Hello", "text": "It works."}' |
             ringback send SendEmail
      echo '{"phone": "79161234567", "text": "Your code: 1234"}' | ringback send SendSms
    """
    documents, faults = parsed(file.read(), MESSAGE_TYPES[type_])
    if faults:
        more = [f"... and {len(faults) - FAULTS_SHOWN} more"] if len(faults) > FAULTS_SHOWN else []
        lines = "\n".join(f"  {line}" for line in faults[:FAULTS_SHOWN] + more)
        raise click.ClickException(f"nothing was sent.\n{lines}")
    settings = settings_here()
    # A line in the middle of a progress bar needs the bar's help.
    write = tqdm.write if sys.stdout.isatty() else click.echo

    def confirmed(document: Document) -> None:
        ids = {"id": document.id, "message_id": document.message_id}
        write(json.dumps(ids) if as_json else document.id)

    work(_send(settings, type_, documents, confirmed))


def parsed(data: bytes, message_type: MessageType) -> tuple[list[Document], list[str]]:
    """The messages of the input, and what is wrong with it, a line each; no value is shown.

    The input is JSON lines when its first line is a whole object and more lines follow; else it is
    one document.
    """
    documents: list[Document] = []
    faults: list[str] = []
    pieces = _pieces(data)
    for line, body in pieces:
        try:
            model = message_type.model.model_validate_json(body)
        except ValidationError as error:
            where = f"line {line}: " if len(pieces) > 1 else ""
            faults += [where + fault for fault in _faults(error)]
        else:
            message_id = new_id()
            logical_id = message_type.logical_id(model, message_id)
            routing_key = message_type.routing_key_of(model)
            documents.append(Document(line, body, logical_id, message_id, routing_key))
    return documents, faults if pieces else ["the input is empty"]


def _pieces(data: bytes) -> list[tuple[int, bytes]]:
    data = data.removeprefix(codecs.BOM_UTF8)
    lines = [(n, line.strip()) for n, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    if len(lines) > 1 and not (lines[0][1].startswith(b"{") and lines[0][1].endswith(b"}")):
        return [(lines[0][0], data.strip())]
    return lines


def _faults(error: ValidationError) -> list[str]:
    return [f"{each.field}: {each.message}".removeprefix(": ") for each in field_errors(error)]


async def _send(
    settings: Settings,
    type_: str,
    documents: Sequence[Document],
    confirmed: Callable[[Document], None],
) -> None:
    """Publish all; what the broker has not confirmed is published again when it is back."""
    with tqdm(
        total=len(documents), unit=" messages", leave=False, disable=_quiet(documents)
    ) as bar:

        def tell(document: Document) -> None:
            confirmed(document)
            bar.update()

        async with publishing(settings) as publisher:
            left = documents
            while left:
                unconfirmed, error = await _round(publisher, MESSAGE_TYPES[type_], left, tell)
                if unconfirmed and len(unconfirmed) == len(left):
                    raise _incomplete(documents, unconfirmed, str(error))
                left = unconfirmed
                try:
                    async with asyncio.timeout(RETURN):
                        await publisher.ready()
                except TimeoutError:
                    raise _incomplete(documents, unconfirmed, str(error)) from None


def _quiet(documents: Sequence[Document]) -> bool | None:
    """Whether to show no progress bar; None leaves it to whether there is a terminal."""
    return True if len(documents) == 1 else None


def _incomplete(
    documents: Sequence[Document], unconfirmed: Sequence[Document], why: str
) -> click.ClickException:
    sent = len(documents) - len(unconfirmed)
    return click.ClickException(
        f"{sent} of {len(documents)} messages are confirmed, their ids printed; the first that is"
        f" not is on line {min(document.line for document in unconfirmed)}: {why}"
    )


async def _round(
    publisher: Publisher,
    message_type: MessageType,
    documents: Sequence[Document],
    tell: Callable[[Document], None],
) -> tuple[list[Document], BaseException | None]:
    """Publish until one fails; what was not confirmed, in order, and why the first was not."""
    window = asyncio.Semaphore(WINDOW)
    failed: list[Document] = []
    errors: list[BaseException] = []

    def ended(document: Document, result: asyncio.Future[None]) -> None:
        window.release()
        if result.cancelled() or (error := result.exception()) is None:
            tell(document)
        else:
            failed.append(document)
            errors.append(error)

    rest = iter(documents)
    for document in rest:
        properties = Properties(
            content_type="application/json",
            type=message_type.name,
            message_id=document.message_id,
            delivery_mode=PERSISTENT,
            timestamp=int(time.time()),
            app_id="ringback",
        )
        await window.acquire()
        result = publisher.publish(
            OutgoingMessage(
                document.routing_key, properties, document.body, exchange=message_type.exchange
            )
        )
        result.add_done_callback(partial(ended, document))
        if errors:
            break
    for _ in range(WINDOW):  # until nothing is in flight
        await window.acquire()
    return [*failed, *rest], errors[0] if errors else None
