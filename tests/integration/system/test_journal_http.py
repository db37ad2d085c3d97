"""N6 and N8 over HTTP: what happened to a callback, through the real services."""

import json
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from yarl import URL

from services.sandbox.misbehaviour import response
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_client import RpcClient
from shared.contracts.journal_figures import READ_OVERVIEW
from shared.topology import WORK_QUEUES
from tests.fakes.broker_client import broker_client, send_callback
from tests.fakes.command import ringback
from tests.fakes.gateway import Caller, base_url, ticket
from tests.fakes.receivers import ClientConnection, Receiver, respond, serve
from tests.fakes.rpc import rpc_client
from tests.fakes.system import System
from tests.fakes.waiting import until

OPERATOR = "operator"
LATER = "2035-01-01T12:00:00Z"
UNKNOWN = "00000000-0000-4000-8000-000000000000"
ATTEMPT_FIELDS = {
    *("at", "attempt", "target", "status_code", "duration", "outcome", "reason", "response"),
}


@pytest.fixture
async def shop(services: System, request: pytest.FixtureRequest) -> AsyncIterator[Caller]:
    """Yield a caller that no other test uses."""
    async with services.calling() as call:
        yield call.as_client(request.node.name[:200])


@pytest.fixture
async def rpc(services: System, shared_amqp_url: str) -> AsyncIterator[RpcClient]:
    assert services
    async with rpc_client(shared_amqp_url) as client:
        yield client


async def failing_once(connection: ClientConnection) -> None:
    """Respond with 503 to the first request."""
    while True:
        await connection.request()
        status = 503 if len(connection.receiver.requests) == 1 else 200
        await connection.write(response(status, body=b"back soon"))


def origin(receiver: Receiver) -> str:
    return str(URL(receiver.url).origin())


async def schedule(shop: Caller, receiver: Receiver, **fields: Any) -> str:
    callback = {
        "url": receiver.url + "?token=secret",
        "delay": 0,
        "hmac_secret": "s",
        "retry_params": {"quick_retries_count": 1},
    }
    created = await shop("POST", "/v1/callbacks", callback | fields)
    assert created.status == 201, created.text
    return str(created.json["id"])


async def timeline_until(shop: Caller, id_: str, kind: str) -> list[Any]:
    """Return the steps of a callback as soon as it has one of this kind."""
    steps: list[Any] = []

    async def reached() -> bool:
        found = await shop("GET", f"/v1/callbacks/{id_}/timeline")
        if found.status == 404:  # not scheduled, and not in the journal yet
            return False
        steps[:] = found.json["items"]
        return kind in {step["kind"] for step in steps}

    await until(reached, 60)
    return steps


async def test_n6_a_callback_is_followed_from_its_schedule_to_its_end(
    shop: Caller, services: System
) -> None:
    async with serve(failing_once) as receiver:
        id_ = await schedule(shop, receiver, group_key="user-7", event_key="reminder-1")
        steps = await timeline_until(shop, id_, "notified")
    assert [step["kind"] for step in steps] == [
        *("scheduled", "dispatched", "attempt", "tier", "attempt", "notified"),
    ]
    assert steps[3]["until"] > steps[3]["at"]
    assert "token" not in json.dumps(steps)

    page = (await shop("GET", f"/v1/callbacks/{id_}/attempts")).json
    assert page["next_cursor"] is None
    assert [item.keys() for item in page["items"]] == [ATTEMPT_FIELDS] * 2
    first, second = page["items"]
    assert (first["attempt"], first["outcome"], first["status_code"]) == (1, "failed", 503)
    assert (second["attempt"], second["outcome"], second["status_code"]) == (2, "delivered", 200)
    assert first["target"] == origin(receiver)
    assert "503" in first["reason"]
    assert 0 <= first["duration"] < 30
    assert datetime.fromisoformat(first["at"]) < datetime.now(UTC)

    for query in (
        "",
        "?group_key=user-7",
        "?event_key=reminder-1&group_key=user-7",
        f"?target={receiver.url}",
        f"?since={first['at']}",
    ):
        found = (await shop("GET", f"/v1/attempts{query}")).json["items"]
        assert [item["callback_id"] for item in found] == [id_, id_], query
        assert [item["outcome"] for item in found] == ["delivered", "failed"]
    found = (await shop("GET", "/v1/attempts?status=failed&limit=1")).json
    assert [item["attempt"] for item in found["items"]] == [1]
    assert (await shop("GET", "/v1/attempts?status=404")).json["items"] == []

    url = await base_url(services["gateway"])
    name = "test_n6_a_callback_is_followed_from_its_schedule_to_its_end"
    asked = ("timeline", id_, "--url", url, "--ticket", ticket(name))
    shown = await ringback(*asked, amqp_url=None)
    assert shown.code == 0, shown.err
    assert "Attempt 1 failed with status 503" in shown.out
    assert "Ended: notified" in shown.out
    as_json = await ringback(*asked, "--json", amqp_url=None)
    assert [step["kind"] for step in json.loads(as_json.out)["items"]][-1] == "notified"


async def test_n6_another_client_s_callback_is_not_found(shop: Caller) -> None:
    async with serve(respond(200)) as receiver:
        id_ = await schedule(shop, receiver)
        await timeline_until(shop, id_, "notified")
    for part in ("attempts", "timeline"):
        path = f"/v1/callbacks/{id_}/{part}"
        for other in (shop.as_client("somebody-else"), shop.as_client(None)):
            (await other("GET", path)).problem(404)
            (await other("GET", f"/v1/callbacks/{UNKNOWN}/{part}")).problem(404)
        for operator in (OPERATOR, "second"):
            assert (await shop.as_client(operator)("GET", path)).status == 200
    other = shop.as_client("somebody-else")
    assert (await other("GET", "/v1/attempts")).json == {"items": [], "next_cursor": None}
    (await other("GET", "/v1/attempts?client_id=shop")).problem(403)
    everything = (await shop.as_client(OPERATOR)("GET", f"/v1/attempts?target={receiver.url}")).json
    assert [item["callback_id"] for item in everything["items"]] == [id_]


async def test_n6_a_callback_without_an_attempt_has_an_empty_list(shop: Caller) -> None:
    async with serve(respond(200)) as receiver:
        id_ = await schedule(shop, receiver, delay=None, run_at=LATER)
        found = await shop("GET", f"/v1/callbacks/{id_}/attempts")
        assert found.json == {"items": [], "next_cursor": None}
        [step] = await timeline_until(shop, id_, "scheduled")
    assert step["until"] == LATER


async def test_n6_other_ends_have_their_own_steps(shop: Caller, shared_amqp_url: str) -> None:
    """A dead letter, an expired callback, and a cancelled one."""
    client_id = "test_n6_other_ends_have_their_own_steps"
    async with serve(respond(410)) as receiver, broker_client(shared_amqp_url) as broker:
        gone = await broker.send(send_callback(receiver.url, client_id=client_id))
        expired = await broker.send(
            send_callback(receiver.url, client_id=client_id, expires_at="2020-01-01T00:00:00Z")
        )
        cancelled = await schedule(shop, receiver, delay=None, run_at=LATER)
        assert (await shop("DELETE", f"/v1/callbacks/{cancelled}")).json["result"] == "cancelled"
        kinds = {
            id_: [step["kind"] for step in await timeline_until(shop, id_, last)]
            for id_, last in ((gone, "dead"), (expired, "expired"), (cancelled, "cancelled"))
        }
    assert kinds == {
        gone: ["attempt", "dead"],
        expired: ["expired"],
        cancelled: ["scheduled", "cancelled"],
    }
    [attempt] = (await shop("GET", f"/v1/callbacks/{gone}/attempts")).json["items"]
    assert (attempt["outcome"], attempt["status_code"]) == ("dead", 410)
    nothing = (await shop("GET", f"/v1/callbacks/{expired}/attempts")).json
    assert nothing == {"items": [], "next_cursor": None}
    # Other tests count all dead letters.
    discard = {"filter": {"client_id": client_id}}
    operator = shop.as_client(OPERATOR)
    assert (await operator("POST", "/v1/dead/callbacks/discard", discard)).status == 202


async def test_n8_only_operators_read_targets_and_the_audit_log(shop: Caller) -> None:
    async with serve(respond(500)) as receiver:
        id_ = await schedule(shop, receiver, retry_params={"quick_retries_count": 0})
        await timeline_until(shop, id_, "retry")
    operator = shop.as_client(OPERATOR)
    for path in ("/v1/targets", "/v1/audit"):
        for other in (shop, shop.as_client(None)):
            (await other("GET", path)).problem(403)
        found = (await operator("GET", path)).json
        assert found.keys() == {"items", "next_cursor"}
    targets = {
        item["target"]: item for item in (await operator("GET", "/v1/targets")).json["items"]
    }
    assert (targets[origin(receiver)]["delivered"], targets[origin(receiver)]["failed"]) == (0, 1)
    assert not targets[origin(receiver)]["paused"]


async def test_n6_wrong_parameters_are_named(shop: Caller) -> None:
    operator = shop.as_client(OPERATOR)
    for path, field in (
        ("/v1/attempts?status=lost", "status"),
        ("/v1/attempts?since=today", "since"),
        ("/v1/attempts?limit=0", "limit"),
        ("/v1/attempts?cursor=!", "cursor"),
        ("/v1/attempts?colour=red", "colour"),
        ("/v1/attempts?reason=%00", "reason"),
        (f"/v1/callbacks/{UNKNOWN}/attempts?cursor=x", "cursor"),
        ("/v1/callbacks/%00/timeline", "id"),
        ("/v1/targets?minutes=0", "minutes"),
        ("/v1/targets?cursor=x", "cursor"),
        ("/v1/audit?until=x", "until"),
    ):
        assert (await operator("GET", path)).rejected_fields() == {field}, path


async def test_n6_the_overview_says_what_is_wrong(rpc: RpcClient, services: System) -> None:
    """Until the scheduler stops, all services respond."""
    overview = await _overview(rpc)
    queues = {queue["queue"]: queue for queue in overview["queues"]}
    assert queues.keys() == {work.name for work in WORK_QUEUES}
    assert queues["callbacks"]["consumers"] >= 1
    assert queues["callbacks"]["tiers"].keys() == {"1s", "5s", "15s", "1m", "5m", "15m", "1h"}
    assert overview["oldest_due"] < 60
    assert overview["waiting"] >= 0
    problems = [finding["problem"] for finding in overview["findings"]]
    assert not any("scheduler does not respond" in problem for problem in problems)
    services["scheduler"].signal(signal.SIGSTOP)
    try:

        async def reported() -> bool:
            found = await _overview(rpc)
            return found["due"] is None and "scheduler" in found["findings"][0]["problem"]

        await until(reported)
    finally:
        services["scheduler"].signal(signal.SIGCONT)


async def _overview(rpc: RpcClient) -> Any:
    context = RequestContext("console", operator=True)
    return await rpc.request(
        READ_OVERVIEW.queue, READ_OVERVIEW.name, b"{}", context=context, timeout=10
    )
