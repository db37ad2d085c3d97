"""N7: a replay of all that matches is exact, although the journal is killed in the middle."""

import signal
from collections import Counter
from pathlib import Path

import pytest

from deploy.local.database import Database
from services.sandbox.misbehaviour import response
from tests.acceptance.crashing_journal_replays import POINTS
from tests.fakes.broker_client import broker_client, send_callback
from tests.fakes.crash_points import slow_except
from tests.fakes.receivers import ClientConnection, serve
from tests.fakes.service import running
from tests.fakes.system import SECRETS_KEY, system
from tests.fakes.waiting import until

RUN_JOURNAL = ("-m", "services", "run", "journal", "--metrics-port", "0")
CRASHING = ("-m", "tests.acceptance.crashing_journal_replays")
FAILED = 60
RATE = 100
STEP = 25  # a quarter of the rate


class Recovering:
    """A receiver that responds 410 until it has recovered."""

    recovered = False

    async def __call__(self, connection: ClientConnection) -> None:
        while True:
            await connection.request()
            await connection.write(response(200 if self.recovered else 410))


@pytest.mark.parametrize("point", slow_except(POINTS, "after the confirms"))
async def test_n7_a_kill_in_the_middle_omits_no_callback_and_the_counts_are_exact(
    amqp_url: str, own_database: Database, tmp_path: Path, point: str
) -> None:
    settings = {
        "RINGBACK_DATABASE_URL": own_database.url,
        "RINGBACK_SECRETS_KEY": SECRETS_KEY,
    }
    behaviour = Recovering()
    with system(tmp_path, amqp_url, own_database.url, "callback") as services:
        await services.ready()
        async with services.calling() as call, serve(behaviour) as receiver:
            shop = call.as_client("shop")
            matching = {"filter": {"reason": "410"}, "dry_run": True}
            with running(tmp_path, amqp_url, settings, (*CRASHING, point)) as dying:
                await dying.ready()
                async with broker_client(amqp_url) as client:
                    ids = await client.send_all(
                        send_callback(receiver.url, client_id="shop") for _ in range(FAILED)
                    )

                async def recorded() -> bool:
                    counted = await shop("POST", "/v1/callbacks/replay", matching)
                    return bool(counted.json == {"matching": FAILED})

                await until(recorded, 60)
                behaviour.recovered = True
                job = {"filter": {"reason": "410"}, "rate": RATE}
                started = await shop("POST", "/v1/callbacks/replay", job)
                assert started.status == 202, started.text
                assert await dying.exit_code() == -signal.SIGKILL, dying.output
            with running(tmp_path, amqp_url, settings, RUN_JOURNAL) as second:
                await second.ready()
                path = f"/v1/jobs/{started.json['job']}"

                async def finished() -> bool:
                    return bool((await shop("GET", path)).json["status"] == "finished")

                await until(finished, 60)
                found = (await shop("GET", path)).json
                await until(lambda: len(receiver.requests) >= 2 * FAILED)
                again = receiver.requests[FAILED:]
    assert (found["matching"], found["done"], found["failed"]) == (FAILED, FAILED, 0)
    times = Counter(request.headers["webhook-id"] for request in again)
    assert times.keys() == set(ids)
    assert max(times.values()) <= 2
    # One batch may be published twice. The callback process remembers its messages.
    assert len(again) - FAILED <= STEP
