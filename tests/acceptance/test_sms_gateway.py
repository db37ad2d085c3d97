"""M7, M8: the SMS gateway fails in many ways, and disrupts nothing else."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.delivering import (
    MessageClient,
    delivery_database,
    delivery_process,
    email,
    message_client,
    settings,
    sms,
)
from tests.fakes.gateway import Caller, calling
from tests.fakes.replicas import replicas
from tests.fakes.sandbox import Sandbox, running_sandbox
from tests.fakes.service import Service
from tests.fakes.system import fresh_database
from tests.fakes.waiting import until

# None: nobody listens on its port.
FAILURES: dict[str, dict[str, Any] | None] = {
    "hangs": {"kind": "hang"},
    "refuses": {"kind": "fail", "status": 503},
    "closes the connection": {"kind": "reset", "at": "start"},
    "responds with nonsense": {"kind": "respond", "body": "<html>It works!"},
    "is down": None,
}
# Many more than the attempts that may fail.
TEXTS, MAILS = 100, 150
CLIENTS = 800
# The default number of places in flight of all processes.
SMS_REQUESTS = 20
# Of each process: the failures that open the breaker, its other places in flight, and five probes
# (after 2, 4, 8, 16 and 32 s).
MAX_ATTEMPTS = 5 + 9 + 5


class Door:
    """A port in front of the sandbox that can be closed, like that of a gateway that is down."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._connections: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner = await asyncio.open_connection(self._sandbox.url.host, self._sandbox.url.port)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pump(reader, inner[1]))
            group.create_task(self._pump(inner[0], writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while data := await reader.read(65_536):
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()
            self._connections.discard(writer)


@asynccontextmanager
async def door(sandbox: Sandbox) -> AsyncIterator[Door]:
    opened = Door(sandbox)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def url(database_url: str) -> str:
    return await delivery_database(database_url)


class System:
    """Two delivery processes, a sandbox behind a door, and what was sent to them."""

    def __init__(
        self, services: list[Service], sandbox: Sandbox, gateway: Door, client: MessageClient
    ) -> None:
        self.services = services
        self.sandbox = sandbox
        self.gateway = gateway
        self.client = client
        self.texts: list[dict[str, Any]] = []
        self.mails: list[dict[str, Any]] = []

    async def send(self, name: str) -> None:
        self.texts += [sms(text=name) for _ in range(TEXTS)]
        self.mails += [email() for _ in range(MAILS)]
        await self.client.send(*self.texts[-TEXTS:], *self.mails[-MAILS:])

    def sent(self, messages: list[dict[str, Any]]) -> bool:
        return self.client.sent().keys() >= {each["id"] for each in messages}

    async def breakers_open(self) -> bool:
        return await self.sum("ringback_breaker_open") == len(self.services)

    async def sum(self, metric: str, **labels: str) -> float:
        return sum([await each.metric(metric, **labels) for each in self.services])

    async def accepted(self, path: str) -> Counter[str]:
        """Return how often each message was accepted, by its id."""
        items = (await self.sandbox.get(path, limit=1000, accepted="true"))["items"]
        return Counter(each["id"] for each in items)

    async def refused(self) -> int:
        """Return how many requests the SMS gateway did not accept."""
        count: int = (await self.sandbox.get("/api/sms/settings"))["refused"]
        return count


@asynccontextmanager
async def system(amqp_url: str, database_url: str, directory: Path) -> AsyncIterator[System]:
    async with (
        running_sandbox() as sandbox,
        message_client(amqp_url) as client,
        door(sandbox) as gateway,
    ):
        environment = settings(
            sandbox,
            database_url,
            RINGBACK_SMS_URL=f"http://127.0.0.1:{gateway.port}/sms",
            # Longer than a response takes on a busy machine: an SMS without a response is repeated.
            RINGBACK_DELIVERY_SMS_TIMEOUT="5",
        )
        with (
            delivery_process(directory, amqp_url, environment) as first,
            delivery_process(directory, amqp_url, environment) as second,
        ):
            services = [await each.ready() for each in (first, second)]
            yield System(services, sandbox, gateway, client)


@pytest.mark.slow
async def test_m7_m8_a_broken_sms_gateway_delays_no_email_and_no_sms_is_lost_or_repeated(
    amqp_url: str, url: str, tmp_path: Path
) -> None:
    async with system(amqp_url, url, tmp_path) as running:
        for name, behaviour in FAILURES.items():
            if behaviour is None:
                await running.gateway.close()
            else:
                await running.sandbox.configure("/api/sms/settings", behaviour=behaviour)
            accepted = await running.accepted("/api/sms")
            await running.send(name)
            await until(partial(running.sent, running.mails))
            await until(running.breakers_open)
            assert await running.accepted("/api/sms") == accepted, name

            if behaviour is None:
                await running.gateway.open()
            else:
                await running.sandbox.configure("/api/sms/settings")
            await until(partial(running.sent, running.texts))
        failed = await running.sum(
            "ringback_messages_total", channel="sms", outcome="attempt_failed"
        )
        deferred = await running.sum(
            "ringback_consumed_total", queue="messages.email", outcome="deferred"
        )
        assert await running.accepted("/api/sms") == Counter(each["id"] for each in running.texts)
        assert set((await running.accepted("/api/mails")).values()) == {1}
    assert failed <= len(FAILURES) * len(running.services) * MAX_ATTEMPTS
    outcomes = {tuple(running.client.outcomes(mail)) for mail in running.mails}
    assert (outcomes, deferred) == ({("sent",)}, 0), "an e-mail waited for the SMS gateway"


@pytest.fixture
def own_database_url(database_url: str) -> Iterator[str]:
    with fresh_database(database_url) as url:
        yield url


@pytest.mark.slow
async def test_m7_two_replicas_finish_a_posting_by_email_while_a_mailing_waits_for_its_gateway(
    amqp_url: str, own_database_url: str, tmp_path: Path
) -> None:
    services = ("mailings", "delivery", "scheduler")  # a gateway is ready with its scheduler
    async with (
        running_sandbox(users=1_000) as sandbox,
        replicas(tmp_path, amqp_url, own_database_url, sandbox, *services) as started,
        calling(started.gateways[0]) as call,
    ):
        await sandbox.configure("/api/sms/settings", behaviour={"kind": "fail", "status": 503})
        texts = await mailed(call)
        mails = await posted(
            call,
            receivers="http://auth/api/v1/users/?page_number=1&page_size=100",
            template="email/new_movies.md",
            delivery_type=["email"],
            template_context={"movies": f"{sandbox.url}fastapi/api/v1/movies/?new=True"},
        )
        by_email = await reached(call, mails, "done")
        assert by_email["messages"] | {"skipped": 0} == {
            **dict.fromkeys(by_email["messages"], 0),
            "sent": (await sandbox.get("/api/mails/settings"))["accepted"],
        }
        assert (await call("GET", texts)).json["status"] == "running"
        assert (await sandbox.get("/api/sms/settings"))["accepted"] == 0

        await sandbox.configure("/api/sms/settings")
        await reached(call, texts, "finished")
        statistics = (await call("GET", f"{texts}/stats")).json
        accepted = (await sandbox.get("/api/sms", limit=1000, accepted="true"))["items"]
        assert started.bugs() == []
    assert (statistics["total"], statistics["by_status"]["sent"]) == (CLIENTS, CLIENTS)
    numbers = Counter(each["id"] for each in accepted)
    assert (len(numbers), set(numbers.values())) == (CLIENTS, {1}), "lost, or sent twice"


@pytest.mark.slow
async def test_m7_a_killed_replica_of_each_service_loses_nothing_and_repeats_what_was_in_flight(
    amqp_url: str, own_database_url: str, tmp_path: Path
) -> None:
    services = ("mailings", "delivery", "scheduler")
    async with (
        running_sandbox() as sandbox,
        replicas(tmp_path, amqp_url, own_database_url, sandbox, *services) as started,
        calling(started.gateways[0]) as call,
    ):
        await sandbox.configure("/api/sms/settings", behaviour={"kind": "delay", "seconds": 0.1})
        texts = await mailed(call)

        async def some_accepted() -> bool:
            return bool((await sandbox.get("/api/sms/settings"))["accepted"] >= CLIENTS // 8)

        await until(some_accepted)
        for replica in started[: len(services)]:
            replica.kill()
        assert (await sandbox.get("/api/sms/settings"))["accepted"] < CLIENTS, "killed too late"
        await reached(call, texts, "finished")
        statistics = (await call("GET", f"{texts}/stats")).json
        accepted = (await sandbox.get("/api/sms", limit=1000, accepted="true"))["items"]
    assert (statistics["total"], statistics["by_status"]["sent"]) == (CLIENTS, CLIENTS)
    numbers = Counter(each["id"] for each in accepted)
    assert len(numbers) == CLIENTS
    assert numbers.total() - CLIENTS <= 2 * SMS_REQUESTS


async def mailed(call: Caller) -> str:
    """Create clients and a mailing to them, and return its path."""
    lines = "".join(f"7916{number:07},UTC\n" for number in range(CLIENTS))
    imported = await call(
        "POST", "/v1/clients/import", raw=f"phone,timezone\n{lines}", Content_Type="text/csv"
    )
    assert imported.json["created"] == CLIENTS, imported.text
    now = datetime.now(UTC)
    times = {"start_at": now.isoformat(), "end_at": (now + timedelta(hours=1)).isoformat()}
    created = await call("POST", "/v1/mailings", {"text": "x", "channel": "sms", **times})
    assert created.status == 201, created.text
    return created.headers["Location"]


async def posted(call: Caller, **posting: Any) -> str:
    """Create a posting, and return the path of its progress."""
    created = await call("POST", "/v1/postings", posting)
    assert created.status == 202, created.text
    return created.headers["Location"]


async def reached(call: Caller, path: str, status: str) -> dict[str, Any]:
    """Wait until a posting or a mailing has this status, and return it."""

    async def progress() -> dict[str, Any] | None:
        found: dict[str, Any] = (await call("GET", path)).json
        return found if found["status"] == status else None

    finished: dict[str, Any] = await until(progress, 120)
    return finished
