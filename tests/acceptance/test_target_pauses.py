"""N8: a pause of a target holds while the database and the broker restart."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from deploy.local.broker import Broker
from deploy.local.database import Database
from tests.fakes.gateway import Caller
from tests.fakes.receivers import Receiver, respond, serve
from tests.fakes.service import Service, running
from tests.fakes.system import System, system
from tests.fakes.waiting import until

OPERATOR = "operator"
COUNT = 20
DEBUG = {"RINGBACK_LOG_LEVEL": "DEBUG"}


@pytest.fixture
def services(own_broker: Broker, own_database: Database, tmp_path: Path) -> Iterator[System]:
    names = ("callback", "scheduler", "journal")
    settings = {"RINGBACK_OPERATORS": OPERATOR, **DEBUG}
    with system(tmp_path, own_broker.url, own_database.url, *names, **settings) as started:
        yield started


def origin(receiver: Receiver) -> str:
    """Return scheme, host and port."""
    parts = urlsplit(receiver.url)
    return f"{parts.scheme}://{parts.netloc}"


def arrivals(receiver: Receiver) -> Counter[str]:
    """Return how often each callback was received."""
    return Counter(request.headers["webhook-id"] for request in receiver.requests)


def deferrals(processes: list[Service], receiver: Receiver) -> Counter[str]:
    """Return how often each callback to a receiver was deferred."""
    target = origin(receiver)
    return Counter(
        line["callback_id"]
        for process in processes
        for line in process.logged("callback deferred", target_url=target)
    )


async def schedule(call: Caller, receiver: Receiver) -> set[str]:
    """Schedule callbacks that are due now, and return their ids."""
    callback = {"url": receiver.url, "delay": 0, "hmac_secret": "your-secret-key"}
    created = await asyncio.gather(*(call("POST", "/v1/callbacks", callback) for _ in range(COUNT)))
    return {str(response.json["id"]) for response in created}


async def restart(broker: Broker, database: Database, services: System) -> None:
    """Kill the broker and the database, and start both."""
    await asyncio.to_thread(broker.sync)
    broker.kill()
    await asyncio.to_thread(database.stop, immediate=True)
    await until(lambda: services["callback"].logged("consumer is not ready"))
    await until(lambda: services["journal"].logged("database is not ready"))
    await asyncio.to_thread(broker.start)
    await asyncio.to_thread(database.start)
    await services.ready()


@pytest.mark.slow
async def test_n8_a_pause_holds_while_the_database_and_the_broker_restart(
    services: System, own_broker: Broker, own_database: Database, tmp_path: Path
) -> None:
    await services.ready()
    one = services["callback"]
    async with (
        serve(respond()) as paused,
        serve(respond()) as other,
        services.calling() as call,
    ):
        operator, target = call.as_client(OPERATOR), {"target": origin(paused)}
        assert (await operator("POST", "/v1/targets/pause", target)).status == 200
        await until(lambda: one.logged("target paused", target_url=origin(paused)))
        waiting = await schedule(call, paused)
        # All of them are in the tier of 5 s now, and their acks precede the next callbacks.
        await until(lambda: _at_least(deferrals([one], paused), waiting, 2))
        sent = await schedule(call, other)
        await until(lambda: arrivals(other).keys() == sent)

        await restart(own_broker, own_database, services)
        # The first process knew the pause. A new one reads it from the broker.
        with running(tmp_path, own_broker.url, DEBUG) as two:
            await two.ready()
            assert two.logged("target paused", target_url=origin(paused))
            before = deferrals([one, two], paused)
            waiting |= await schedule(call, paused)
            sent |= await schedule(call, other)
            await until(lambda: arrivals(other).keys() == sent)
            await until(lambda: _at_least(deferrals([one, two], paused) - before, waiting, 1))
            listed = (await operator("GET", "/v1/targets")).json["items"]
            assert [each["target"] for each in listed if each["paused"]] == [origin(paused)]
            assert not paused.requests

            assert (await operator("POST", "/v1/targets/resume", target)).status == 200
            await until(lambda: arrivals(paused).keys() == waiting)
            await until(lambda: _all_notified(call, waiting | sent), 60)
            assert arrivals(paused) == Counter(waiting)
            assert arrivals(other).keys() == sent
            assert not deferrals([one, two], other)


def _at_least(counts: Counter[str], ids: set[str], times: int) -> bool:
    return all(counts[id_] >= times for id_ in ids)


async def _all_notified(call: Caller, ids: set[str]) -> bool:
    async def status(id_: str) -> Any:
        return (await call("GET", f"/v1/callbacks/{id_}")).json["status"]

    return set(await asyncio.gather(*map(status, ids))) == {"notified"}
