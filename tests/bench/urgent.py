"""Part o: urgent e-mails, from their postings to the mail server, next to a bulk posting."""

import asyncio
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from services.delivery.app import SCHEMA as DELIVERY_SCHEMA
from services.mailings.app import SCHEMA
from shared.amqp.publisher import Publisher
from shared.postgres.migrations import migrate
from shared.registry import BULK, CHANNELS
from tests.bench.expansion import bulk_posting, posting, serve_lists, site, user
from tests.bench.messages import SandboxClient, fill, running_sandbox, until
from tests.bench.one_recipient import serve_users
from tests.bench.rig import Rig, Sender, median
from tests.bench.served import served
from tests.bench.table import Row, Section, at_most

# Bulk e-mails in the queue before the start, and recipients of the bulk posting beside it.
BULK_EMAILS: Final = 100_000
URGENT_EMAILS: Final = 10
# Seconds from one urgent posting to the next.
INTERVAL: Final = 1.0
# The first user of an urgent posting. Those of the bulk posting have smaller numbers.
FIRST: Final = 10_000_000


async def urgent(rig: Rig) -> Section:
    """Part o."""
    name = "urgent"
    database = rig.database.create_database(name)
    for schema in (SCHEMA, DELIVERY_SCHEMA):
        await migrate(database, schema)
    with served(serve_lists) as lists, served(serve_users) as users:
        environment = {
            "RINGBACK_DATABASE_URL": database,
            "RINGBACK_LOG_LEVEL": "WARNING",
            "RINGBACK_SOURCES": f"auth=http://127.0.0.1:{lists},users=http://127.0.0.1:{users}",
            # The bulk posting is expanded during the measurement, too.
            "RINGBACK_MAILINGS_MAX_WAITING": str(10 * BULK_EMAILS),
        }
        async with running_sandbox(rig, database) as sandbox, site(rig, name) as (url, broker, out):
            await fill(url, 0, BULK_EMAILS)
            with (
                _running(rig, "delivery", url, sandbox.environment) as delivery,
                _running(rig, "mailings", url, environment),
            ):
                await out.publish_all([bulk_posting(BULK_EMAILS)])
                await until(sandbox, delivery, 1)
                begin = time.monotonic()
                waits = [
                    await _wait(out, sandbox, FIRST + number) for number in range(URGENT_EMAILS)
                ]
                rate = await sandbox.accepted() / (time.monotonic() - begin)
                channel = await broker.connection.channel(publisher_confirms=False)
                queue = await channel.queue_declare(CHANNELS["email"].queues[BULK], passive=True)
    rows = [
        Row("posting to mail server, median", "s", median(waits)),
        Row(
            "posting to mail server, longest",
            "s",
            max(waits),
            target="at most 1",
            verdict=at_most(max(waits), 1),
        ),
        Row("all e-mails meanwhile", "/s", rate),
        Row("bulk e-mails at the end", "in the queue", float(queue.message_count or 0)),
    ]
    notes = [
        f"{URGENT_EMAILS} urgent postings to one user each, a second apart, while {BULK_EMAILS:,}",
        f"bulk e-mails wait, and a posting to {BULK_EMAILS:,} others is expanded; one process of",
        "each service, mail server, broker and database on two cores",
    ]
    return Section("o", "Delivery: urgent beside bulk", "", rows, notes)


@contextmanager
def _running(rig: Rig, service: str, url: str, environment: Mapping[str, str]) -> Iterator[Sender]:
    process = rig.start(("-m", f"services.{service}"), url, service, environment)
    try:
        yield process
    finally:
        process.signal(signal.SIGKILL)
        process.process.wait()


async def _wait(publisher: Publisher, sandbox: SandboxClient, number: int) -> float:
    """Publish an urgent posting, and return the seconds until its e-mail is accepted."""
    await asyncio.sleep(INTERVAL)
    address = str(user(number)["email"])
    message = posting(
        receivers=f"http://users/?id={number:032x}",
        template="email/email_confirmation.md",
        template_context={"confirmation_link": "https://shop.example.com/confirm/4"},
    )
    begin = time.monotonic()
    await publisher.publish_all([message])
    await sandbox.received(address)
    return time.monotonic() - begin
