"""N7: a redrive and a discard are exact, although the journal is killed in the middle."""

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import to_json

from shared.amqp.connection import connect
from shared.amqp.dead_letters import parse_dead_letter
from shared.amqp.facts import fact_messages
from shared.amqp.publisher import Publisher
from shared.amqp.queue_browser import browse_queue
from shared.amqp.rpc_client import RpcClient
from shared.contracts.journal_dead import GROUP_DEAD, READ_JOB, START_DISCARD, START_REDRIVE
from shared.contracts.requests import RpcOperation
from shared.topology import CALLBACKS, dead_queue, topology
from tests.acceptance.crashing_journal import POINTS
from tests.fakes.journal import empty_journal, fact_publisher
from tests.fakes.moving import OMAR, dead_letter, fact_of
from tests.fakes.rpc import rpc_client
from tests.fakes.service import running
from tests.fakes.waiting import until

CRASHING = ("-m", "tests.acceptance.crashing_journal")
RUN_JOURNAL = ("-m", "services", "run", "journal", "--metrics-port", "0")
LETTERS = 60
# A step moves a quarter of this.
RATE = 80
STEP = RATE // 4


async def call(client: RpcClient, operation: RpcOperation[Any], **fields: Any) -> Any:
    return await client.request(
        operation.queue, operation.name, to_json(fields), context=OMAR, timeout=10.0
    )


async def ids(amqp_url: str, queue: str) -> Counter[str]:
    """Return the logical ids in a queue, and how often each is there."""
    async with connect(amqp_url, name="test") as broker, browse_queue(broker, queue) as browser:
        return Counter([parse_dead_letter(delivery).id async for delivery in browser])


async def dead(publisher: Publisher, reason: str) -> list[str]:
    """Publish dead letters with their facts, and return their logical ids."""
    letters = [dead_letter(CALLBACKS, reason=reason) for _ in range(LETTERS)]
    await publisher.publish_all(letters)
    facts = [fact_of(CALLBACKS, letter) for letter in letters]
    await publisher.publish_all(list(fact_messages(facts)))
    return [json.loads(letter.body)["id"] for letter in letters]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operation", "point"),
    [*((START_REDRIVE, point) for point in POINTS), (START_DISCARD, POINTS[1])],
    ids=[*(f"redrive, {point}" for point in POINTS), f"discard, {POINTS[1]}"],
)
async def test_n7_a_kill_in_the_middle_of_a_job_loses_and_miscounts_nothing(
    amqp_url: str, database_url: str, tmp_path: Path, operation: RpcOperation[Any], point: str
) -> None:
    await empty_journal(database_url)
    settings = {"RINGBACK_DATABASE_URL": database_url}
    async with (
        fact_publisher(amqp_url, topology()) as publisher,
        rpc_client(amqp_url) as client,
    ):
        chosen, others = await dead(publisher, "chosen"), await dead(publisher, "others")
        with running(tmp_path, amqp_url, settings, (*CRASHING, point)) as dying:
            await dying.ready()

            async def indexed() -> bool:
                groups = await call(client, GROUP_DEAD, queue=CALLBACKS)
                return bool(groups["total"] == 2 * LETTERS)

            await until(indexed)
            move = {"filter": {"reason": "chosen"}, "rate": RATE}
            job = (await call(client, operation, queue=CALLBACKS, move=move))["job"]
            assert await dying.exit_code() == -signal.SIGKILL, dying.output
        with running(tmp_path, amqp_url, settings, RUN_JOURNAL) as second:
            await second.ready()

            async def finished() -> Any:
                found = await call(client, READ_JOB, id=job)
                return found if found["status"] != "running" else None

            found = await until(finished)
            groups = await call(client, GROUP_DEAD, queue=CALLBACKS)
            assert second.logged("job claimed", continued=True)

    assert (found["status"], found["matching"], found["done"], found["failed"]) == (
        *("finished", LETTERS, LETTERS, 0),
    )
    assert groups["items"] == [{"key": "others", "count": LETTERS}]
    assert await ids(amqp_url, dead_queue(CALLBACKS)) == Counter(others)
    moved = await ids(amqp_url, CALLBACKS)
    if operation is START_DISCARD:
        assert not moved
    elif point == "after the publish":
        # The step in progress is published again, with the same message ids.
        assert set(moved) == set(chosen)
        assert moved.total() == LETTERS + STEP
    else:
        assert moved == Counter(chosen)
