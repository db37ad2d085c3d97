"""N7 and N8 through the real services: replays, kept requests, and paused targets."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from standardwebhooks import Webhook
from yarl import URL

from services.sandbox.misbehaviour import response
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_client import RpcClient
from shared.contracts.journal_replays import READ_REQUEST
from shared.contracts.requests import Failure, FailureCode
from tests.fakes.broker_client import BrokerClient, broker_client, send_callback
from tests.fakes.gateway import Caller
from tests.fakes.receivers import ClientConnection, Receiver, respond, serve
from tests.fakes.rpc import rpc_client
from tests.fakes.system import System, fresh_database, system
from tests.fakes.waiting import until

OPERATOR = "operator"
CANARY = "c4n4ry"
SIGNING_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(scope="module")
def own_database(database_url: str) -> Iterator[str]:
    with fresh_database(database_url) as url:
        yield url


@pytest.fixture(scope="module")
def services(
    shared_amqp_url: str, own_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    with system(
        tmp_path_factory.mktemp("system"),
        shared_amqp_url,
        own_database,
        *("callback", "journal"),
        RINGBACK_OPERATORS=OPERATOR,
        RINGBACK_JOURNAL_BODIES="all",
        RINGBACK_LOG_LEVEL="DEBUG",
    ) as started:
        asyncio.run(started.ready())
        yield started


@pytest.fixture
async def call(services: System) -> AsyncIterator[Caller]:
    async with services.calling() as caller:
        yield caller


@pytest.fixture
async def client(services: System, shared_amqp_url: str) -> AsyncIterator[BrokerClient]:
    assert services
    async with broker_client(shared_amqp_url) as connected:
        yield connected


@pytest.fixture
async def rpc(services: System, shared_amqp_url: str) -> AsyncIterator[RpcClient]:
    assert services
    async with rpc_client(shared_amqp_url) as connected:
        yield connected


def origin(receiver: Receiver) -> str:
    return str(URL(receiver.url).origin())


async def gone_first(connection: ClientConnection) -> None:
    """Respond with 410 to the first request."""
    while True:
        await connection.request()
        gone = len(connection.receiver.requests) == 1
        await connection.write(response(410 if gone else 200))


async def overloaded_first(connection: ClientConnection) -> None:
    """Respond with 503 to the first five requests."""
    while True:
        await connection.request()
        overloaded = len(connection.receiver.requests) <= 5
        await connection.write(response(503 if overloaded else 200))


async def timeline(call: Caller, id_: str) -> list[Any]:
    """Return the entries of a callback. Several steps can be about one entry."""
    found = await call("GET", f"/v1/callbacks/{id_}/timeline")
    steps = found.json["items"] if found.status == 200 else []
    return list({step["entry"]["seq"]: step["entry"] for step in steps}.values())


async def recorded(call: Caller, id_: str, attempts: int = 1) -> None:
    """Wait until the journal has so many attempts of a callback."""

    async def complete() -> bool:
        return [e["kind"] for e in await timeline(call, id_)].count("attempt") >= attempts

    await until(complete, 60)


async def test_n7_a_callback_is_sent_again_under_the_same_id(
    call: Caller, client: BrokerClient
) -> None:
    shop = call.as_client("shop")
    async with serve(gone_first) as receiver, serve(respond()) as other:
        id_ = await client.send(
            send_callback(receiver.url, client_id="shop", hmac_secret=SIGNING_SECRET)
        )
        await recorded(shop, id_)
        again = await shop("POST", f"/v1/callbacks/{id_}/replay")
        assert (again.status, again.json) == (202, {"id": id_})
        await until(lambda: len(receiver.requests) == 2)
        first, second = receiver.requests
        assert first.body == second.body
        assert [each.headers["webhook-id"] for each in receiver.requests] == [id_, id_]
        Webhook(SIGNING_SECRET).verify(second.body, dict(second.headers))

        elsewhere = await shop("POST", f"/v1/callbacks/{id_}/replay", {"url": other.url})
        assert elsewhere.status == 202
        await until(lambda: len(other.requests) == 1)
        assert other.requests[0].headers["webhook-id"] == id_
        await recorded(shop, id_, attempts=3)

    entries = await timeline(shop, id_)
    kinds = [entry["kind"] for entry in entries]
    assert (kinds.count("attempt"), kinds.count("replayed")) == (3, 2)
    replays = [entry["detail"]["replay"] for entry in entries if entry["kind"] == "replayed"]
    attempts = [entry for entry in entries if entry["kind"] == "attempt"]
    assert [entry["outcome"] for entry in attempts] == ["dead", "delivered", "delivered"]
    assert [entry["detail"].get("replay") for entry in attempts] == [None, *replays]
    operator = call.as_client(OPERATOR)
    actions = (await operator("GET", "/v1/audit?action=replay")).json["items"]
    assert [(each["actor"], each["object"]) for each in actions] == [("shop", id_)] * 2


async def test_n7_only_the_client_itself_and_operators_replay(
    call: Caller, client: BrokerClient
) -> None:
    shop = call.as_client("shop")
    async with serve(respond()) as receiver:
        id_ = await client.send(send_callback(receiver.url, client_id="shop"))
        await recorded(shop, id_)
        for other in (call.as_client("another"), call):
            (await other("POST", f"/v1/callbacks/{id_}/replay")).problem(404)
        (await shop("POST", f"/v1/callbacks/{uuid4()}/replay")).problem(404)
        (await shop("POST", f"/v1/callbacks/{id_}/replay", {"url": "ftp://x/"})).rejected_fields()
        assert len(receiver.requests) == 1
        assert (await call.as_client(OPERATOR)("POST", f"/v1/callbacks/{id_}/replay")).status == 202
        await until(lambda: len(receiver.requests) == 2)


async def test_n7_what_is_not_kept_is_a_conflict(call: Caller, client: BrokerClient) -> None:
    shop = call.as_client("shop")
    async with serve(respond()) as receiver:
        body = send_callback(receiver.url, client_id="shop", payload={"text": "x" * 300_000})
        id_ = await client.send(body)
        await recorded(shop, id_)
        problem = (await shop("POST", f"/v1/callbacks/{id_}/replay")).problem(409)
    assert problem["type"].endswith("not_kept")
    assert len(receiver.requests) == 1


async def test_n7_callbacks_of_two_clients_with_one_id_stay_apart(
    call: Caller, client: BrokerClient
) -> None:
    id_ = f"shared-{uuid4().hex}"
    async with serve(respond()) as mine, serve(respond()) as theirs:
        await client.send(send_callback(mine.url, client_id="mine", id=id_))
        await recorded(call.as_client("mine"), id_)
        await client.send(send_callback(theirs.url, client_id="theirs", id=id_))
        await recorded(call.as_client("theirs"), id_)
        await call.as_client("theirs")("POST", f"/v1/callbacks/{id_}/replay")
        await until(lambda: len(theirs.requests) == 2)
        assert len(mine.requests) == 1
        operator, replay = call.as_client(OPERATOR), f"/v1/callbacks/{id_}/replay"
        assert (await operator("POST", replay)).problem(409)["type"].endswith("conflict")
        assert (await operator("POST", replay, {"client_id": "mine"})).status == 202
        await until(lambda: len(mine.requests) == 2)
        (await call.as_client("theirs")("POST", replay, {"client_id": "mine"})).problem(403)


async def test_n7_operators_read_a_kept_request_without_its_secrets(
    call: Caller, client: BrokerClient, rpc: RpcClient
) -> None:
    async with serve(respond()) as receiver:
        id_ = await client.send(
            send_callback(
                receiver.url,
                client_id="shop",
                hmac_secret=CANARY,
                headers={"Authorization": CANARY, "X-Tenant": "7"},
            )
        )
        await recorded(call.as_client("shop"), id_)

    async def read(context: RequestContext) -> Any:
        body = json.dumps({"id": id_}).encode()
        operation = READ_REQUEST
        return await rpc.request(operation.queue, operation.name, body, context=context, timeout=10)

    console = RequestContext("console", message_id=uuid4().hex, operator=True, actor="Ada")
    kept = await read(console)
    assert kept["callback_id"] == id_
    assert CANARY not in json.dumps(kept)
    assert kept["request"]["headers"]["X-Tenant"] == "7"
    assert kept["request"]["payload"] == {"any": "json"}
    refused = await read(RequestContext("shop"))
    assert isinstance(refused, Failure)
    assert refused.code is FailureCode.FORBIDDEN
    looks = (await call.as_client(OPERATOR)("GET", "/v1/audit?action=read_request")).json["items"]
    assert [(each["actor"], each["object"]) for each in looks] == [("Ada", id_)]


async def test_n7_no_secret_and_no_body_is_in_clear_in_a_fact_a_log_or_the_database(
    call: Caller, client: BrokerClient, services: System, own_database: str
) -> None:
    async with serve(respond(410)) as receiver:
        id_ = await client.send(
            send_callback(
                f"{receiver.url}/{CANARY}?token={CANARY}",
                client_id="shop",
                hmac_secret=CANARY,
                headers={"Authorization": CANARY},
                payload={"text": CANARY},
            )
        )
        shop = call.as_client("shop")
        await recorded(shop, id_)
        await shop("POST", f"/v1/callbacks/{id_}/replay", {"url": f"{receiver.url}/{CANARY}"})
        await recorded(shop, id_, attempts=2)
    assert client.facts_of(id_)
    places = {
        "facts": "".join(message.body.decode() for message in client.fact_messages),
        "database": await _dump(own_database),
        **{name: service.output for name, service in services.items()},
    }
    assert id_ in places["database"]
    assert [name for name, text in places.items() if CANARY in text] == []


async def _dump(database_url: str) -> str:
    """Return all rows of the journal as text."""
    connection = await asyncpg.connect(database_url)
    try:
        tables = await connection.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'journal'"
        )
        rows = [
            row
            for table in tables
            for row in await connection.fetch(f'SELECT * FROM journal."{table[0]}"')  # noqa: S608
        ]
    finally:
        await connection.close()
    return "\n".join(str(dict(row)) for row in rows)


async def test_n8_operators_pause_and_resume_a_target(
    call: Caller, client: BrokerClient, services: System
) -> None:
    operator = call.as_client(OPERATOR)
    async with serve(respond()) as receiver:
        target = {"target": origin(receiver)}
        for other in (call, call.as_client("shop")):
            (await other("POST", "/v1/targets/pause", target)).problem(403)
        paused = await operator("POST", "/v1/targets/pause", target)
        assert (paused.status, paused.json) == (200, {**target, "paused": True})
        assert (await operator("POST", "/v1/targets/pause", target)).status == 200
        await until(
            lambda: services["callback"].logged("target paused", target_url=origin(receiver))
        )
        id_ = await client.send(send_callback(receiver.url))
        log = services["callback"].logged
        await until(lambda: log("callback deferred", callback_id=id_))
        [health] = [
            each
            for each in (await operator("GET", "/v1/targets")).json["items"]
            if each["target"] == origin(receiver)
        ]
        assert health["paused"]
        assert not receiver.requests
        resumed = await operator("POST", "/v1/targets/resume", target)
        assert (resumed.status, resumed.json) == (200, {**target, "paused": False})
        fact = await client.fact(id_, "callback.delivered")
    assert fact["attempt"] == 1
    actions = (await operator("GET", "/v1/audit")).json["items"]
    own = [each for each in actions if each["object"] == origin(receiver)]
    assert [each["action"] for each in own] == ["resume_target", "pause_target", "pause_target"]


@pytest.mark.parametrize(
    "target", ["example.com", "ftp://example.com", "https://example.com/hooks", "https://u@x.com"]
)
async def test_n8_a_target_is_scheme_host_and_port(call: Caller, target: str) -> None:
    refused = await call.as_client(OPERATOR)("POST", "/v1/targets/pause", {"target": target})
    assert refused.rejected_fields() == {"target"}


async def test_n8_an_open_breaker_is_shown_until_it_closes(
    call: Caller, client: BrokerClient
) -> None:
    operator = call.as_client(OPERATOR)
    async with serve(overloaded_first) as receiver:

        async def is_open() -> bool | None:
            items = (await operator("GET", "/v1/targets")).json["items"]
            found = [each for each in items if each["target"] == origin(receiver)]
            return found[0]["breaker_open"] if found else None

        for _ in range(5):
            id_ = await client.send(send_callback(receiver.url, retry={"delays": [1]}))
        await until(is_open)

        async def closed() -> bool:
            return await is_open() is False

        await until(closed)
        await client.fact(id_, "callback.delivered")


class Recovering:
    """A receiver that responds 410 until it has recovered."""

    recovered = False

    async def __call__(self, connection: ClientConnection) -> None:
        while True:
            await connection.request()
            await connection.write(response(200 if self.recovered else 410))


async def job_of(call: Caller, body: dict[str, Any]) -> str:
    """Start a replay, and return the id of its job."""
    started = await call("POST", "/v1/callbacks/replay", body)
    assert started.status == 202, started.text
    return str(started.json["job"])


async def ended(call: Caller, job: str) -> Any:
    """Wait until a job is no longer running, and return it."""
    found: dict[str, Any] = {}

    async def is_over() -> bool:
        found.update((await call("GET", f"/v1/jobs/{job}")).json)
        return bool(found["status"] != "running")

    await until(is_over, 60)
    return found


async def failing(
    call: Caller, client: BrokerClient, receiver: Receiver, client_id: str, count: int
) -> list[str]:
    """Send callbacks that fail, and wait until the journal has them."""
    ids = await client.send_all(
        send_callback(receiver.url, client_id=client_id) for _ in range(count)
    )
    for id_ in ids:
        await recorded(call.as_client(client_id), id_)
    return ids


async def test_n7_everything_that_matches_is_sent_again_once(
    call: Caller, client: BrokerClient
) -> None:
    shop, operator = call.as_client("bulk-shop"), call.as_client(OPERATOR)
    behaviour = Recovering()
    async with serve(behaviour) as receiver, serve(respond()) as other:
        ids = await failing(call, client, receiver, "bulk-shop", 5)
        theirs = await failing(call, client, receiver, "bulk-other", 1)
        await failing(call, client, other, "bulk-shop", 1)  # delivered
        chosen = {"filter": {"target": origin(receiver)}}
        for caller, matching in ((shop, 5), (call.as_client("nobody"), 0), (operator, 6)):
            counted = await caller("POST", "/v1/callbacks/replay", {**chosen, "dry_run": True})
            assert (counted.status, counted.json) == (200, {"matching": matching})
        before = len(receiver.requests)
        behaviour.recovered = True
        job = await job_of(shop, {**chosen, "rate": 1000})
        finished = await ended(shop, job)
        assert (finished["status"], finished["matching"]) == ("finished", 5)
        assert (finished["done"], finished["failed"]) == (5, 0)
        (await call.as_client("bulk-other")("GET", f"/v1/jobs/{job}")).problem(403)
        await until(lambda: len(receiver.requests) == before + 5)
        again = [request.headers["webhook-id"] for request in receiver.requests[before:]]
        assert sorted(again) == sorted(ids)
        for id_ in ids:
            await recorded(shop, id_, attempts=2)

        # Their last attempt was delivered, so only the other client's still matches.
        counted = await operator("POST", "/v1/callbacks/replay", {**chosen, "dry_run": True})
        assert counted.json == {"matching": 1}
        job = await job_of(operator, {"filter": {"client_id": "bulk-other"}, "url": other.url})
        assert (await ended(operator, job))["done"] == 1
        await until(lambda: other.requests[-1].headers["webhook-id"] == theirs[0])
        delivered = {"filter": {"target": origin(receiver)}, "status": "delivered"}
        counted = await shop("POST", "/v1/callbacks/replay", {**delivered, "dry_run": True})
        assert counted.json == {"matching": 5}
    actions = (await operator("GET", "/v1/audit?action=replay&actor=bulk-shop")).json["items"]
    assert [each["result"] for each in actions] == ["finished", "started"]


async def test_n7_a_replay_keeps_its_rate_and_can_be_cancelled(
    call: Caller, client: BrokerClient
) -> None:
    shop = call.as_client("slow-shop")
    behaviour = Recovering()
    async with serve(behaviour) as receiver:
        await failing(call, client, receiver, "slow-shop", 6)
        before = len(receiver.requests)
        behaviour.recovered = True
        job = await job_of(shop, {"filter": {}, "rate": 0.5})
        await until(lambda: len(receiver.requests) > before)
        (await call.as_client("nobody")("DELETE", f"/v1/jobs/{job}")).problem(403)
        assert (await shop("DELETE", f"/v1/jobs/{job}")).status == 200
        cancelled = await ended(shop, job)
        assert cancelled["status"] == "cancelled"
        assert cancelled["done"] < 6
        # A step in progress still ends, and none follows.
        await asyncio.sleep(0)
        assert len(receiver.requests) - before <= 2


async def test_n7_the_jobs_of_a_client_do_not_stop_those_of_others(
    call: Caller, client: BrokerClient
) -> None:
    greedy, other = call.as_client("greedy-shop"), call.as_client("modest-shop")
    jobs: list[str] = []
    async with serve(Recovering()) as receiver:
        await failing(call, client, receiver, "greedy-shop", 2)
        await failing(call, client, receiver, "modest-shop", 1)
        slow = {"filter": {}, "rate": 1e-300}
        jobs.append(await job_of(greedy, slow))
        for _ in range(9):
            refused = await greedy("POST", "/v1/callbacks/replay", slow)
            if refused.status == 202:
                jobs.append(refused.json["job"])
        try:
            job = await job_of(other, {"filter": {}})
            await until(lambda: _is_finished(other, job), within=10)
            assert len(jobs) == 1
            refused.problem(409)
        finally:
            for each in jobs:
                await greedy("DELETE", f"/v1/jobs/{each}")
        job = await job_of(greedy, {"filter": {}})
        await ended(greedy, job)


async def _is_finished(caller: Caller, job: str) -> bool:
    return bool((await caller("GET", f"/v1/jobs/{job}")).json["status"] == "finished")


async def test_n7_what_is_not_kept_counts_as_failed(call: Caller, client: BrokerClient) -> None:
    shop = call.as_client("large-shop")
    async with serve(respond(410)) as receiver:
        large = send_callback(receiver.url, client_id="large-shop", payload="x" * 300_000)
        await recorded(shop, await client.send(large))
        job = await job_of(shop, {"filter": {"target": origin(receiver), "reason": "410"}})
        finished = await ended(shop, job)
    assert (finished["status"], finished["done"], finished["failed"]) == ("finished", 0, 1)


async def test_n7_a_client_cannot_name_another_one(call: Caller) -> None:
    body = {"filter": {"client_id": "another"}, "dry_run": True}
    (await call.as_client("shop")("POST", "/v1/callbacks/replay", body)).problem(403)
    for wrong, field in (
        ({"filter": {"colour": "red"}}, "filter.colour"),
        ({"filter": {"target": "example.com"}}, "filter.target"),
        ({"rate": 0}, "rate"),
        ({"url": "ftp://example.com"}, "url"),
    ):
        refused = await call("POST", "/v1/callbacks/replay", wrong)
        assert refused.rejected_fields() == {field}
