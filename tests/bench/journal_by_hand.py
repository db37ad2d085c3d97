"""The baseline: what a good engineer writes by hand to record attempts.

It consumes facts, copies them into one table with two indexes, in batches, and acks. It has no
partitions, figures by minute, checks of repeats and gaps, metrics or log.
"""

import asyncio
import json
import os
from base64 import b64decode
from datetime import datetime
from typing import Any

import aio_pika
import asyncpg
import uvloop
from aio_pika.abc import AbstractIncomingMessage

QUEUE = "bench.facts"
TABLE = """
CREATE TABLE attempts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL,
    type text NOT NULL,
    callback_id text NOT NULL,
    client_id text,
    target text,
    attempt integer NOT NULL,
    status integer,
    duration double precision,
    reason text,
    trace_id text,
    response bytea
);
CREATE INDEX attempts_callback ON attempts (callback_id);
CREATE INDEX attempts_target ON attempts (target, at);
"""
COLUMNS = (
    *("at", "type", "callback_id", "client_id", "target", "attempt"),
    *("status", "duration", "reason", "trace_id", "response"),
)
# Messages in memory and in a batch, like those of the journal.
PREFETCH = 100
BATCH = 50


def row(fact: dict[str, Any]) -> tuple[Any, ...]:
    response = fact["response"]
    return (
        datetime.fromisoformat(fact["at"]),
        fact["type"],
        fact["callback_id"],
        fact["client_id"],
        fact["target"],
        fact["attempt"],
        fact["status"],
        fact["duration"],
        fact.get("error"),
        fact["trace_id"],
        None if response is None else b64decode(response),
    )


async def main() -> None:
    database = await asyncpg.connect(os.environ["RINGBACK_DATABASE_URL"])
    connection = await aio_pika.connect_robust(os.environ["RINGBACK_AMQP_URL"])
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=PREFETCH)
    queue = await channel.get_queue(QUEUE)
    received: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    await queue.consume(received.put)
    while True:
        messages = [await received.get()]
        while len(messages) < BATCH and not received.empty():
            messages.append(received.get_nowait())
        rows = [row(fact) for message in messages for fact in json.loads(message.body)["facts"]]
        await database.copy_records_to_table("attempts", columns=COLUMNS, records=rows)
        await messages[-1].ack(multiple=True)


if __name__ == "__main__":
    uvloop.run(main())
