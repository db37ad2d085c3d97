"""`ringback send`: validates messages and publishes them with confirms."""

import asyncio
import codecs
import json
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Final

import click
from pydantic import ValidationError
from tqdm import tqdm

from services.cli.broker import broker_settings, publishing, run_task
from services.cli.output import OutputError, echo
from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, Publisher
from shared.contracts.context import field_errors
from shared.contracts.headers import APP_ID
from shared.contracts.message_types import MESSAGE_TYPES, MessageType
from shared.ids import uuid7
from shared.settings import Settings

# Publishes in flight: enough to hide the round trip, and few enough to send again.
MAX_IN_FLIGHT: Final = 500
MAX_FAULTS_SHOWN: Final = 50
# Seconds that an interrupted command waits for the confirms of messages in flight.
CONFIRM_TIMEOUT: Final = 5.0
# Seconds to wait for a broker that is lost, or refuses all messages: after its restart, a queue has
# no leader for a while. A restart takes ten seconds, on a busy machine several times as long.
BROKER_TIMEOUT: Final = 60.0
RETRY_DELAY: Final = 1.0


@dataclass(frozen=True, slots=True)
class Document:
    """One message of the input. `line` is its first line, and `id` its logical id."""

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
    """Publish the message in FILE, or one message per line. FILE defaults to standard input.

    All messages are validated first. If one is not valid, every wrong field is listed with its
    line, and nothing is published. The command prints the id of each message that the broker has
    confirmed. After an interruption, send the messages without a printed id again. Some may arrive
    twice.

    \b
    Examples:
      echo '{"target_url": "https://example.com/hook", "hmac_secret": "s3cret",
             "payload": {"hello": "world"}}' | ringback send SendCallback
      ringback send SendCallback callback.json
      ringback send SendCallback callbacks.jsonl > ids.txt
      echo '{"delay": 3600, "url": "https://example.com/hook", "group_key": "user-7",
             "event_key": "reminder-1"}' | ringback send ScheduleCallback
      echo '{"group_key": "user-7", "event_key": "reminder-1"}' | ringback send CancelCallback
      echo '{"to": "user@mail.com", "subject": "Hello", "text": "It works."}' |
             ringback send SendEmail
      echo '{"phone": "79161234567", "text": "Your code: 1234"}' | ringback send SendSms
    """
    documents, faults = parse(file.read(), MESSAGE_TYPES[type_])
    if faults:
        more = (
            [f"... and {len(faults) - MAX_FAULTS_SHOWN} more"]
            if len(faults) > MAX_FAULTS_SHOWN
            else []
        )
        lines = "\n".join(f"  {line}" for line in faults[:MAX_FAULTS_SHOWN] + more)
        raise click.ClickException(
            f"Cannot send: the input is not valid. Nothing was published.\n{lines}"
        )
    settings = broker_settings()
    # tqdm.write prints a line above the progress bar.
    write = tqdm.write if sys.stdout.isatty() else echo
    unconfirmed = {document.line: document for document in documents}

    def confirmed(document: Document) -> None:
        del unconfirmed[document.line]
        ids = {"id": document.id, "message_id": document.message_id}
        write(json.dumps(ids) if as_json else document.id)

    try:
        run_task(_send(settings, type_, documents, confirmed))
    except click.Abort:
        raise _incomplete(documents, unconfirmed.values(), "interrupted") from None
    except OutputError as error:
        raise _incomplete(documents, unconfirmed.values(), error.message) from None


def parse(data: bytes, message_type: MessageType) -> tuple[list[Document], list[str]]:
    """Return the messages of the input, and its faults as lines of text without values.

    The input is JSON lines if its first line is a whole object and more lines follow. Otherwise it
    is one document.
    """
    documents: list[Document] = []
    faults: list[str] = []
    parts = _split(data)
    for line, body in parts:
        try:
            model = message_type.model.model_validate_json(body)
        except ValidationError as error:
            where = f"line {line}: " if len(parts) > 1 else ""
            faults += [f"{where}{fault}" for fault in field_errors(error)]
        else:
            message_id = uuid7().hex
            logical_id = message_type.logical_id(model, message_id)
            routing_key = message_type.routing_key_of(model)
            documents.append(Document(line, body, logical_id, message_id, routing_key))
    return documents, faults if parts else ["the input is empty"]


def _split(data: bytes) -> list[tuple[int, bytes]]:
    data = data.removeprefix(codecs.BOM_UTF8)
    lines = [(n, line.strip()) for n, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    if len(lines) > 1 and not (lines[0][1].startswith(b"{") and lines[0][1].endswith(b"}")):
        return [(lines[0][0], data.strip())]
    return lines


async def _send(
    settings: Settings,
    type_: str,
    documents: Sequence[Document],
    confirmed: Callable[[Document], None],
) -> None:
    """Publish all messages; publish unconfirmed ones again after reconnecting."""
    with tqdm(
        total=len(documents), unit=" messages", leave=False, disable=_quiet(documents)
    ) as bar:

        def report(document: Document) -> None:
            confirmed(document)
            bar.update()

        async with publishing(settings) as publisher:
            remaining, error = documents, None
            now = asyncio.get_running_loop().time
            deadline = now() + BROKER_TIMEOUT
            while remaining:
                try:
                    async with asyncio.timeout_at(deadline):
                        await publisher.ready()
                except TimeoutError:
                    raise _incomplete(documents, remaining, str(error)) from None
                unconfirmed, error = await _round(
                    publisher, MESSAGE_TYPES[type_], remaining, report
                )
                if isinstance(error, OutputError):
                    raise error
                if len(unconfirmed) < len(remaining):
                    deadline = now() + BROKER_TIMEOUT
                elif now() >= deadline:
                    raise _incomplete(documents, unconfirmed, str(error))
                else:
                    await asyncio.sleep(RETRY_DELAY)
                remaining = unconfirmed


def _quiet(documents: Sequence[Document]) -> bool | None:
    """Return whether to hide the progress bar; None shows it only on a terminal."""
    return True if len(documents) == 1 else None


def _incomplete(
    documents: Sequence[Document], unconfirmed: Collection[Document], reason: str
) -> click.ClickException:
    confirmed = len(documents) - len(unconfirmed)
    first = min((document.line for document in unconfirmed), default=None)
    other = "" if first is None else f" The first other one is on line {first}."
    return click.ClickException(
        f"Cannot send all messages: {reason.rstrip('.')}."
        f" {confirmed} of {len(documents)} messages were confirmed.{other}"
    )


async def _round(
    publisher: Publisher,
    message_type: MessageType,
    documents: Sequence[Document],
    report: Callable[[Document], None],
) -> tuple[list[Document], BaseException | None]:
    """Publish until one publish fails. Return the unconfirmed messages and the first error.

    An OutputError comes before other errors. When cancelled, wait for the confirms of messages in
    flight.
    """
    slots = asyncio.Semaphore(MAX_IN_FLIGHT)
    in_flight: set[asyncio.Future[None]] = set()
    failed: list[Document] = []
    errors: list[BaseException] = []

    def finish(document: Document, result: asyncio.Future[None]) -> None:
        in_flight.discard(result)
        slots.release()
        if (error := result.exception()) is not None:
            failed.append(document)
            errors.append(error)
            return
        try:
            report(document)
        except OutputError as unprinted:
            errors.insert(0, unprinted)

    rest = iter(documents)
    try:
        for document in rest:
            await slots.acquire()
            result = publisher.publish(_outgoing(message_type, document))
            in_flight.add(result)
            result.add_done_callback(partial(finish, document))
            if errors:
                break
        if in_flight:
            await asyncio.wait(in_flight)
    except asyncio.CancelledError:
        if in_flight:
            await asyncio.wait(in_flight, timeout=CONFIRM_TIMEOUT)
        raise
    return [*failed, *rest], errors[0] if errors else None


def _outgoing(message_type: MessageType, document: Document) -> OutgoingMessage:
    properties = Properties(
        content_type="application/json",
        type=message_type.name,
        message_id=document.message_id,
        delivery_mode=PERSISTENT,
        timestamp=int(time.time()),
        app_id=APP_ID,
    )
    return OutgoingMessage(
        document.routing_key, properties, document.body, exchange=message_type.exchange
    )
