"""N7 over HTTP: dead callbacks are counted and redriven, through the real services."""

from typing import Any

from services.sandbox.misbehaviour import response
from tests.fakes.broker_client import broker_client, send_callback
from tests.fakes.command import ringback
from tests.fakes.gateway import Caller
from tests.fakes.receivers import ClientConnection, serve
from tests.fakes.system import System
from tests.fakes.waiting import until

OPERATOR = "operator"
DEAD = "/v1/dead/callbacks"
KEY = "the receiver responded with 410: gone for good"


async def gone_at_first(connection: ClientConnection) -> None:
    """Respond with 410 to the first request of each callback."""
    while True:
        request = await connection.request()
        mine = request.headers["webhook-id"]
        count = [each.headers["webhook-id"] for each in connection.receiver.requests].count(mine)
        await connection.write(response(410 if count == 1 else 200, body=b"ok"))


async def counted(operator: Caller, total: int) -> Any:
    """Wait until so many letters are in the index, and return the groups."""

    async def reached() -> Any:
        found = await operator("GET", f"{DEAD}?group_by=reason")
        assert found.status == 200, found.text
        return found.json if found.json["total"] == total else None

    return await until(reached, 60)


async def ended(operator: Caller, job: str) -> Any:
    async def over() -> Any:
        found = (await operator("GET", f"/v1/jobs/{job}")).json
        return found if found["status"] != "running" else None

    return await until(over, 60)


async def has_step(operator: Caller, callback: str, kind: str) -> bool:
    timeline = (await operator("GET", f"/v1/callbacks/{callback}/timeline")).json
    return kind in {step["kind"] for step in timeline["items"]}


async def test_n7_dead_callbacks_are_counted_redriven_and_delivered(
    services: System, shared_amqp_url: str
) -> None:
    async with (
        services.calling() as call,
        serve(gone_at_first) as receiver,
        broker_client(shared_amqp_url) as client,
    ):
        operator, shop = call.as_client(OPERATOR), call.as_client("shop")
        url = receiver.url + "?token=canary"
        sent = [await client.send(send_callback(url, client_id="shop")) for _ in range(7)]
        groups = await counted(operator, 7)
        listed = (await operator("GET", f"{DEAD}/letters?client_id=shop&limit=1000")).json
        letter = listed["items"][0]
        shown = await operator("GET", f"{DEAD}/letters/{letter['letter_id']}")
        refused = await shop("POST", f"{DEAD}/redrive", {})
        wrong = await operator("POST", f"{DEAD}/redrive", {"filter": {"reasons": "x"}, "rate": 0})
        dry_run = await operator(
            "POST", f"{DEAD}/redrive", {"filter": {"reason": KEY}, "dry_run": True}
        )
        started = await operator("POST", f"{DEAD}/redrive", {"filter": {"reason": KEY}})
        assert started.status == 202, started.text
        job = await ended(operator, started.json["job"])
        other = await shop("GET", f"/v1/jobs/{job['id']}")
        missing = await operator("GET", "/v1/jobs/00000000-0000-4000-8000-000000000000")
        unknown = await operator("GET", "/v1/dead/nothing")
        await until(lambda: len(receiver.requests) == 14, 60)
        await counted(operator, 0)
        await until(lambda: has_step(operator, sent[0], "redriven"), 60)
        audit = (await operator("GET", "/v1/audit")).json["items"]

    assert groups["items"] == [{"key": KEY, "count": 7}]
    assert {item["logical_id"] for item in listed["items"]} == set(sent)
    assert letter["client_id"] == "shop"
    assert (shown.status, shown.json["logical_id"]) == (200, letter["logical_id"])
    assert "canary" not in shown.text
    refused.problem(403)
    assert wrong.rejected_fields() == {"filter.reasons", "rate"}
    assert (dry_run.status, dry_run.json) == (200, {"matching": 7})
    assert (job["status"], job["matching"], job["done"], job["failed"]) == ("finished", 7, 7, 0)
    other.problem(403)
    missing.problem(404)
    unknown.problem(404)
    assert {request.headers["webhook-id"] for request in receiver.requests} == set(sent)
    actions = [(each["actor"], each["action"], each["result"]) for each in audit]
    assert (OPERATOR, "redrive", "started") in actions
    assert (OPERATOR, "redrive", "finished") in actions


async def test_n7_a_redrive_of_the_command_reaches_the_index(
    services: System, shared_amqp_url: str
) -> None:
    async with (
        services.calling() as call,
        serve(gone_at_first) as receiver,
        broker_client(shared_amqp_url) as client,
    ):
        operator = call.as_client(OPERATOR)
        for _ in range(3):
            await client.send(send_callback(receiver.url))
        await counted(operator, 3)
        output = await ringback("dead", "redrive", "callbacks", "--yes", amqp_url=shared_amqp_url)
        assert output.code == 0, output.err
        await counted(operator, 0)
        await until(lambda: len(receiver.requests) == 6, 60)
