"""N6 and N7: the journal down, late or killed costs delivery nothing; its jobs survive `kill -9`.

Two processes of each service, with default settings.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.sandbox.misbehaviour import response
from tests.fakes.broker_client import broker_client, send_callback
from tests.fakes.gateway import Caller
from tests.fakes.receivers import ClientConnection, Receiver, serve
from tests.fakes.service import RUN_CALLBACK, Service, running
from tests.fakes.system import SECRETS_KEY, System, fresh_database, system
from tests.fakes.waiting import until

RUN_JOURNAL = ("-m", "services", "run", "journal", "--metrics-port", "0")
OPERATOR = "operator"
FAILED = 80
# A job saves its progress about four times a second. Ten seconds of work are left at the kill.
RATE = 8
STORED = "SELECT callback_id FROM journal.entries WHERE kind = 'attempt'"


class Switch:
    """The behaviour of a receiver: 410 until it is repaired."""

    repaired = True

    async def __call__(self, connection: ClientConnection) -> None:
        while True:
            await connection.request()
            await connection.write(response(200 if self.repaired else 410))


class Processes:
    """Two callback processes and a gateway, and journals that tests start and kill."""

    def __init__(self, directory: Path, amqp_url: str, services: System, database: str) -> None:
        self.amqp_url = amqp_url
        self.database = database
        self.services = services
        self._directory = directory
        self._stack = ExitStack()
        self.journals: list[Service] = []

    def start(self, arguments: Sequence[str]) -> Service:
        """Start one more process."""
        settings = {"RINGBACK_DATABASE_URL": self.database, "RINGBACK_SECRETS_KEY": SECRETS_KEY}
        return self._stack.enter_context(
            running(self._directory, self.amqp_url, settings, arguments)
        )

    async def start_journals(self) -> None:
        """Start journals until there are two, and wait until they are ready."""
        self.journals = [each for each in self.journals if not each.exited()]
        while len(self.journals) < 2:
            self.journals.append(self.start(RUN_JOURNAL))
        await asyncio.gather(*(each.ready() for each in self.journals))

    def stop(self) -> None:
        """Kill what `start` has started."""
        self._stack.close()


@pytest.fixture
def processes(amqp_url: str, database_url: str, tmp_path: Path) -> Iterator[Processes]:
    with (
        fresh_database(database_url) as url,
        system(tmp_path, amqp_url, url, "callback", RINGBACK_OPERATORS=OPERATOR) as services,
    ):
        started = Processes(tmp_path, amqp_url, services, url)
        try:
            yield started
        finally:
            started.stop()


async def recorded(processes: Processes, receiver: Receiver) -> None:
    """Wait until each request of the receiver is an attempt in the journal, exactly once."""
    connection = await asyncpg.connect(processes.database)

    async def stored() -> Counter[str]:
        return Counter(row["callback_id"] for row in await connection.fetch(STORED))

    async def complete() -> bool:
        return (await stored()).total() >= len(receiver.requests)

    try:
        await until(complete, 60)
        assert await stored() == arrivals(receiver)
    finally:
        await connection.close()


def arrivals(receiver: Receiver) -> Counter[str]:
    """Return how often each callback was received."""
    return Counter(request.headers["webhook-id"] for request in receiver.requests)


async def reading(journals: Sequence[Service]) -> Service:
    """Return the journal that stores facts."""
    counts = [await each.metric("ringback_journal_facts_total") for each in journals]
    return journals[counts.index(max(counts))]


async def received(receiver: Receiver, count: int) -> None:
    """Wait until a receiver has this many requests."""
    await until(lambda: len(receiver.requests) >= count, 60)


async def kill_after(journal: Service, receiver: Receiver, count: int) -> None:
    """Kill a journal once a receiver has this many requests."""
    await received(receiver, count)
    journal.kill()


async def kill_in_the_middle(processes: Processes, operator: Caller, job: str) -> Any:
    """Kill the journal that works on a job; return the job once the other has finished it."""

    async def read() -> Any:
        return (await operator("GET", f"/v1/jobs/{job}")).json

    async def begun() -> bool:
        return bool((await read())["done"] > 0)

    async def over() -> Any:
        found = await read()
        return found if found["status"] != "running" else None

    await until(begun, 60)
    worker, other = sorted(processes.journals, key=lambda each: not each.logged("job claimed"))
    worker.kill()
    killed = await read()
    assert killed["status"] == "running", "it was killed too late"
    found = await until(over, 120)
    assert other.logged("job claimed", continued=True)
    return found


@pytest.mark.slow
async def test_n6_the_journal_down_and_killed_costs_delivery_nothing_and_misses_nothing(
    processes: Processes,
) -> None:
    processes.start(RUN_CALLBACK)
    await processes.start_journals()  # the first one declares the stream
    await processes.services.ready()
    async with serve(Switch()) as receiver, broker_client(processes.amqp_url) as client:
        for journal in processes.journals:
            journal.kill()
        sent = await client.send_all(send_callback(receiver.url) for _ in range(500))
        await received(receiver, 500)  # without any journal

        await processes.start_journals()
        await recorded(processes, receiver)

        for total in (1000, 1500):
            reader = await reading(processes.journals)
            more, _ = await asyncio.gather(
                client.send_all(send_callback(receiver.url) for _ in range(500)),
                kill_after(reader, receiver, total - 450),
            )
            sent += more
            await received(receiver, total)
            await recorded(processes, receiver)
            await processes.start_journals()
    assert arrivals(receiver) == Counter(sent)


@pytest.mark.slow
async def test_n7_redrive_and_replay_are_exact_although_the_journal_is_killed(
    processes: Processes,
) -> None:
    await processes.start_journals()
    await processes.services.ready()
    target = Switch()
    async with (
        processes.services.calling() as call,
        serve(target) as receiver,
        broker_client(processes.amqp_url) as client,
    ):
        operator = call.as_client(OPERATOR)
        target.repaired = False
        sent = await client.send_all(send_callback(receiver.url) for _ in range(FAILED))

        async def indexed(total: int) -> bool:
            return bool((await operator("GET", "/v1/dead/callbacks")).json["total"] == total)

        await until(lambda: indexed(FAILED), 60)
        target.repaired = True
        started = await operator("POST", "/v1/dead/callbacks/redrive", {"rate": RATE})
        redriven = await kill_in_the_middle(processes, operator, started.json["job"])
        await until(lambda: set(_more_than(receiver, 1)) == set(sent), 60)
        await until(lambda: indexed(0), 60)

        await processes.start_journals()
        await recorded(processes, receiver)
        before = arrivals(receiver)
        replay = {"filter": {}, "status": "delivered", "rate": RATE}
        started = await operator("POST", "/v1/callbacks/replay", replay)
        replayed = await kill_in_the_middle(processes, operator, started.json["job"])
        await until(lambda: all(arrivals(receiver)[id_] > before[id_] for id_ in sent), 60)
        await recorded(processes, receiver)

    for job in (redriven, replayed):
        assert (job["status"], job["matching"]) == ("finished", FAILED)
        assert (job["done"], job["failed"]) == (FAILED, 0)
    assert arrivals(receiver).keys() == set(sent)
    # Only the step in progress at a kill is sent again, with the same id.
    assert arrivals(receiver).total() - 3 * FAILED <= 2 * RATE


def _more_than(receiver: Receiver, count: int) -> list[str]:
    return [id_ for id_, times in arrivals(receiver).items() if times > count]
