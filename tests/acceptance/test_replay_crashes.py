"""N3: a replay is exact, although the service is killed in the middle."""

import signal
from pathlib import Path

import asyncpg
import pytest

from deploy.local.database import Database
from tests.acceptance.crashing_replays import POINTS
from tests.fakes.crash_points import slow_except
from tests.fakes.messenger import RUN_SUBSCRIPTIONS
from tests.fakes.receivers import respond, serve
from tests.fakes.service import running
from tests.fakes.system import SECRETS_KEY, system
from tests.fakes.waiting import until

CRASHING = ("-m", "tests.acceptance.crashing_replays")
FAILED = 60
RATE = 20
LONG_AGO = "2026-01-01T00:00:00Z"


@pytest.mark.parametrize("point", slow_except(POINTS, "after the commit"))
async def test_n3_a_kill_in_the_middle_of_a_replay_omits_and_repeats_no_message(
    amqp_url: str, own_database: Database, tmp_path: Path, point: str
) -> None:
    settings = {
        "RINGBACK_DATABASE_URL": own_database.url,
        "RINGBACK_SECRETS_KEY": SECRETS_KEY,
        "RINGBACK_SUBSCRIPTIONS_REPLAY_RATE": str(RATE),
    }
    with system(tmp_path, amqp_url, own_database.url, "callback") as services:
        await services.ready()
        connection = await asyncpg.connect(own_database.url)
        async with services.calling() as call, serve(respond()) as receiver:
            with running(tmp_path, amqp_url, settings, RUN_SUBSCRIPTIONS) as first:
                await first.ready()
                body = {"url": receiver.url, "event_types": ["*"]}
                endpoint = (await call("POST", "/v1/endpoints", body)).json
                await connection.execute("UPDATE subscriptions.endpoints SET status = 'disabled'")
                for number in range(FAILED):
                    message = {"event_type": "a", "payload": number, "id": f"m{number}"}
                    assert (await call("POST", "/v1/messages", message)).status == 202
                path = f"/v1/endpoints/{endpoint['id']}"
                assert (await call("POST", f"{path}/resume")).status == 200
                first.signal(signal.SIGTERM)
                assert await first.exit_code() == 0, first.output
            with running(tmp_path, amqp_url, settings, (*CRASHING, point)) as dying:
                await dying.ready()
                replay = {"since": LONG_AGO}
                assert (await call("POST", f"{path}/replay", replay)).status == 202
                assert await dying.exit_code() == -signal.SIGKILL, dying.output
            with running(tmp_path, amqp_url, settings, RUN_SUBSCRIPTIONS) as second:
                await second.ready()

                async def delivered() -> bool:
                    sql = "SELECT count(*) FROM subscriptions.deliveries WHERE status = 'delivered'"
                    return bool(await connection.fetchval(sql) == FAILED)

                async def ended() -> bool:
                    sql = "SELECT finished_at FROM subscriptions.replays"
                    return await connection.fetchval(sql) is not None

                await until(delivered)
                await until(ended)
                ids = [request.headers["webhook-id"] for request in receiver.requests]
        (row,) = await connection.fetch("SELECT * FROM subscriptions.replays")
        await connection.close()
    assert set(ids) == {f"m{number}" for number in range(FAILED)}
    assert row["replayed"] == FAILED
    # Only dispatches in flight at the kill may be repeated, with the same id.
    assert len(ids) - FAILED < RATE
