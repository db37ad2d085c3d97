"""M2: stop means stop, from the caller's request to the gateway, with all processes running."""

import json
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shared.amqp.rpc_client import RpcClient
from shared.contracts.requests import Failure
from shared.topology import MAILINGS_REQUESTS
from tests.fakes.delivering import RUN_DELIVERY, delivery_database, seconds_from_now, settings
from tests.fakes.mailing import empty_mailings
from tests.fakes.rpc import rpc_client
from tests.fakes.sandbox import Sandbox, running_sandbox
from tests.fakes.service import Service, running
from tests.fakes.waiting import until

RUN_MAILINGS = ("-m", "services", "run", "mailings", "--metrics-port", "0")
# The promise.
GRACE = timedelta(seconds=2)
# Two processes with 10 places each, and a gateway that takes half a second: 40 messages a second.
CLIENTS, DELAY = 400, 0.5


class System:
    """Mailings, two processes of delivery, the sandbox, and a caller."""

    def __init__(
        self, mailings: Service, delivery: tuple[Service, Service], sandbox: Sandbox, rpc: RpcClient
    ) -> None:
        self.mailings = mailings
        self.delivery = delivery
        self.sandbox = sandbox
        self._rpc = rpc

    async def request(self, operation: str, **body: Any) -> dict[str, Any]:
        """Send a request until it is answered, and return the response."""
        while True:
            response = await self._rpc.request(
                MAILINGS_REQUESTS, operation, json.dumps(body).encode(), timeout=30
            )
            if not isinstance(response, Failure):
                return dict(response)
            # As with a 504: the suspended process of delivery has got the request for the stop.
            assert "has not confirmed" in response.detail, response

    async def start_mailing(self, **fields: Any) -> str:
        """Create a mailing to all clients, and return its id."""
        given = {"text": "Hello", "end_at": seconds_from_now(3600), **fields}
        return str((await self.request("CreateMailing", mailing=given))["id"])

    async def arrivals(self) -> dict[str, datetime]:
        """Return when the gateway has accepted each message."""
        items = (await self.sandbox.get("/api/sms", limit=1000, accepted="true"))["items"]
        found = {each["id"]: datetime.fromisoformat(each["received_at"]) for each in items}
        assert len(found) == len(items), "no message was sent twice"
        return found

    async def statuses(self, mailing: str) -> dict[str, set[str]]:
        """Return the ids of the messages of a mailing by status."""
        found: dict[str, set[str]] = {}
        cursor = None
        while True:
            page = await self.request("ListMailingMessages", id=mailing, cursor=cursor, limit=1000)
            for each in page["items"]:
                found.setdefault(each["status"], set()).add(each["id"])
            cursor = page["next_cursor"]
            if cursor is None:
                return found

    async def settled(self, mailing: str, others: int = 0) -> dict[str, set[str]]:
        """Wait until each message is settled, and those that arrived are known to be sent.

        Returns:
            the ids by status. `others`: messages of other mailings that arrived.
        """

        async def all_settled() -> dict[str, set[str]] | None:
            found, arrived = await self.statuses(mailing), await self.arrivals()
            if sum(map(len, found.values())) < CLIENTS or "created" in found:
                return None
            sent = found.get("sent", set())
            return found if sent <= arrived.keys() and len(sent) + others == len(arrived) else None

        return dict(await until(all_settled, 60))


@pytest.fixture
async def system(amqp_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[System]:
    await delivery_database(database_url)
    await empty_mailings(database_url)
    async with running_sandbox() as sandbox, rpc_client(amqp_url) as rpc:
        slow = {"kind": "delay", "seconds": DELAY}
        await sandbox.configure("/api/sms/settings", behaviour=slow)
        environment = settings(sandbox, database_url)
        with ExitStack() as stack:
            mailings, *delivery = (
                stack.enter_context(running(tmp_path, amqp_url, environment, command))
                for command in (RUN_MAILINGS, RUN_DELIVERY, RUN_DELIVERY)
            )
            for service in (mailings, *delivery):
                await service.ready()
            system = System(mailings, (delivery[0], delivery[1]), sandbox, rpc)
            clients = [
                {"phone": f"7916{number:07d}", "timezone": "Europe/Moscow"}
                for number in range(CLIENTS)
            ]
            lines = [{"line": line, "client": each} for line, each in enumerate(clients, start=1)]
            await system.request("ImportClients", lines=lines)
            yield system


async def test_m2_a_paused_mailing_sends_nothing_until_it_continues(system: System) -> None:
    mailing = await system.start_mailing()
    await until(system.arrivals)
    paused = await system.request("PauseMailing", id=mailing)
    confirmed = datetime.now(UTC)
    assert paused["status"] == "paused"
    before = {id_: at for id_, at in (await system.arrivals()).items() if at <= confirmed}
    await until(lambda: datetime.now(UTC) > confirmed + 2 * GRACE)
    arrived = await system.arrivals()
    assert len(before) < CLIENTS, "paused too late for this test"
    assert max(arrived.values()) <= confirmed + GRACE
    assert (await system.statuses(mailing)).keys() <= {"created", "sent"}

    await system.sandbox.configure("/api/sms/settings")
    resumed = await system.request("ResumeMailing", id=mailing)
    assert resumed["status"] == "running"
    assert (await system.settled(mailing)).keys() == {"sent"}
    await until(lambda: system.mailings.logged("mailing finished", mailing_id=mailing))


async def test_m2_a_cancelled_mailing_sends_nothing_wherever_it_waits(system: System) -> None:
    """Also in a suspended process, and in a mailing whose start time has not come."""
    start_at = seconds_from_now(8)
    scheduled = await system.start_mailing(start_at=start_at, text="Not this one")
    mailing = await system.start_mailing()
    await until(system.arrivals)
    suspended = system.delivery[1]
    await suspended.idle()
    suspended.signal(signal.SIGSTOP)
    cancelled = await system.request("CancelMailing", id=mailing)
    confirmed = datetime.now(UTC)
    assert cancelled["status"] == "cancelled"
    assert (await system.request("CancelMailing", id=scheduled))["status"] == "cancelled"
    await until(lambda: datetime.now(UTC) > confirmed + GRACE)
    suspended.signal(signal.SIGCONT)

    found = await system.settled(mailing)
    assert found.keys() == {"sent", "cancelled"}
    arrived = await system.arrivals()
    assert max(arrived.values()) <= confirmed + GRACE
    # A mailing that starts later is sent, by both processes, and nothing of the others.
    await system.sandbox.configure("/api/sms/settings")
    later = await system.start_mailing(start_at=start_at)
    assert (await system.settled(later, others=len(arrived))).keys() == {"sent"}
    assert await system.statuses(scheduled) == {}


async def test_m2_nothing_is_sent_after_an_earlier_end_time(system: System) -> None:
    mailing = await system.start_mailing()
    await until(system.arrivals)
    end_at = seconds_from_now(1)
    await system.request("ChangeMailing", id=mailing, changes={"end_at": end_at})
    await until(lambda: datetime.now(UTC) > datetime.fromisoformat(end_at) + 2 * GRACE)
    assert (await system.settled(mailing)).keys() == {"sent", "expired"}
    arrived = await system.arrivals()
    # The sandbox notes a message when it responds, DELAY after its arrival.
    assert max(arrived.values()) <= datetime.fromisoformat(end_at) + GRACE
    assert (await system.request("GetMailing", id=mailing))["status"] == "finished"
