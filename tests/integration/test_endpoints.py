"""N1: endpoints of customers, their secrets and their status, on a real database."""

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from services.subscriptions.endpoints import sweeping
from services.subscriptions.endpoints.domain import disabled_id
from shared.contracts.endpoint_requests import EndpointPage
from shared.contracts.endpoints import Endpoint, EndpointCreated
from shared.contracts.requests import Failure, FailureCode
from tests.fakes.endpoints import CIPHER, MAX_ENDPOINTS, URL, EndpointsClient, running_endpoints


@pytest.fixture
async def client(database_url: str) -> AsyncIterator[EndpointsClient]:
    async with running_endpoints(database_url) as client:
        yield client


def code(response: Any) -> FailureCode:
    assert isinstance(response, Failure), response
    return response.code


async def stored(client: EndpointsClient, id_: UUID) -> Any:
    return await client.connection.fetchrow(
        "SELECT * FROM subscriptions.endpoints WHERE id = $1", id_
    )


async def test_n1_an_endpoint_has_a_secret_that_is_shown_once_and_stored_encrypted(
    client: EndpointsClient,
) -> None:
    fields = {
        "url": URL,
        "event_types": ["invoice.*", "invoice.*", "order.paid"],
        "headers": {"X-Tenant": "header-canary"},
        "rate_limit": 2.5,
        "description": "Billing",
    }
    created = await client("CreateEndpoint", endpoint=fields)
    assert isinstance(created, EndpointCreated)
    secret = created.secret.removeprefix("whsec_")
    assert len(base64.b64decode(secret, validate=True)) == 32
    assert created.event_types == ["invoice.*", "order.paid"]
    assert (created.status, created.rate_limit, created.description) == ("active", 2.5, "Billing")
    found = await client("GetEndpoint", id=str(created.id))
    assert type(found) is Endpoint
    assert found.model_dump() == created.model_dump(exclude={"secret"})
    row = await stored(client, created.id)
    for canary in ("header-canary", "hook-canary", secret):
        assert canary not in str(dict(row))
    assert CIPHER.decrypt(row["secret"]).decode() == created.secret


async def test_n1_a_repeated_creation_returns_the_same_endpoint(client: EndpointsClient) -> None:
    new = {"url": URL, "event_types": ["*"]}
    first = await client("CreateEndpoint", endpoint=new, idempotency_key="k")
    again = await client("CreateEndpoint", endpoint=new, idempotency_key="k")
    assert again == first
    other = {"url": URL, "event_types": ["a"]}
    response = await client("CreateEndpoint", endpoint=other, idempotency_key="k")
    assert code(response) is FailureCode.CONFLICT
    delivered_again = [await client("CreateEndpoint", "request-1", endpoint=new) for _ in range(2)]
    assert delivered_again[0] == delivered_again[1] != first
    elsewhere = client.as_client("other")
    theirs = await elsewhere("CreateEndpoint", endpoint=new, idempotency_key="k")
    assert theirs.id != first.id


async def test_n1_a_client_has_a_limited_number_of_endpoints(client: EndpointsClient) -> None:
    for _ in range(MAX_ENDPOINTS):
        await client.endpoint()
    new = {"url": URL, "event_types": ["*"]}
    assert code(await client("CreateEndpoint", endpoint=new)) is FailureCode.CONFLICT
    assert isinstance(
        await client.as_client("other")("CreateEndpoint", endpoint=new), EndpointCreated
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", "ftp://customer.example.com"),
        ("url", "https://user:password@customer.example.com"),
        ("url", "https://[fe80::1%25eth0]/"),
        ("event_types", []),
        ("event_types", ["a"] * 101),
        ("event_types", ["invoice.*.late"]),
        ("event_types", ["invoice*"]),
        ("event_types", [""]),
        ("headers", {"webhook-id": "1"}),
        ("headers", {"X-Signature": "1"}),
        ("headers", {"Host": "internal"}),
        ("headers", {"Content-Length": "0"}),
        ("headers", {"x-ringback-sequence": "1"}),
        ("headers", {"X-A": "1", "x-a": "2"}),
        ("headers", {"X-A": "1\r\nX-B: 2"}),
        ("headers", {"X-A": "a" * 20_000}),
        ("headers", {f"X-{number}": "a" for number in range(65)}),
        ("rate_limit", 0),
        ("rate_limit", 1e-9),  # its due times would exceed those of PostgreSQL
        ("rate_limit", float("inf")),
        ("fingerprint", "00"),
        ("description", "a\0"),
        ("id", "mine"),
    ],
)
async def test_n1_an_invalid_endpoint_is_rejected_by_the_name_of_the_field(
    client: EndpointsClient, field: str, value: Any
) -> None:
    new = {"url": URL, "event_types": ["*"], field: value}
    response = await client("CreateEndpoint", endpoint=new)
    if value != float("inf"):  # not JSON
        assert [error.field.split(".")[0] for error in response.errors] == [field]
    assert code(response) is FailureCode.INVALID
    assert not await client.connection.fetch("SELECT FROM subscriptions.endpoints")


async def test_n1_clients_are_isolated_from_each_other(client: EndpointsClient) -> None:
    id_ = await client.endpoint()
    await client.send(id="m1")
    for other in (client.as_client("other"), client.as_client(None)):
        requests: tuple[tuple[str, dict[str, Any]], ...] = (
            ("GetEndpoint", {}),
            ("ChangeEndpoint", {"change": {"url": URL}}),
            ("DeleteEndpoint", {}),
            ("PauseEndpoint", {}),
            ("ResumeEndpoint", {}),
            ("RotateSecret", {}),
            ("TestEndpoint", {}),
            ("ReplayEndpoint", {"replay": {"message_id": "m1"}}),
            ("ListEndpointMessages", {}),
        )
        for operation, body in requests:
            assert code(await other(operation, id=str(id_), **body)) is FailureCode.NOT_FOUND
        for operation in ("GetEndpointMessage", "ListMessageAttempts"):
            assert code(await other(operation, id="m1")) is FailureCode.NOT_FOUND
        assert (await other("ListEndpoints")).items == []
        assert (await other.send(id="m1", payload="theirs")).endpoints == 0
    assert await client.statuses(id_) == ["pending"]


async def test_n1_a_list_has_pages_newest_first(client: EndpointsClient) -> None:
    ids = [await client.endpoint(description=str(number)) for number in range(5)]
    found: list[UUID] = []
    cursor = None
    while True:
        page: EndpointPage = await client("ListEndpoints", limit=2, cursor=cursor)
        found += [endpoint.id for endpoint in page.items]
        if (cursor := page.next_cursor) is None:
            break
    assert found == ids[::-1]
    await client.control("PauseEndpoint", ids[2])
    assert [e.id for e in (await client("ListEndpoints", status="paused")).items] == [ids[2]]
    assert code(await client("ListEndpoints", cursor="garbage")) is FailureCode.INVALID


async def test_n1_a_page_of_large_endpoints_ends_early(client: EndpointsClient) -> None:
    headers = {f"X-{number}": "a" * 4000 for number in range(4)}
    created = [await client.endpoint(headers=headers) for _ in range(3)]
    await client.connection.execute(
        "INSERT INTO subscriptions.endpoints (id, client_id, url, secret, headers, event_types)"
        " SELECT gen_random_uuid(), client_id, url, secret, headers, event_types"
        " FROM subscriptions.endpoints, generate_series(1, 49)"
    )
    found: list[UUID] = []
    sizes = []
    cursor = None
    while True:
        page = await client("ListEndpoints", limit=1000, cursor=cursor)
        found += [endpoint.id for endpoint in page.items]
        sizes.append(len(page.model_dump_json()))
        if (cursor := page.next_cursor) is None:
            break
    assert len(set(found)) == len(found) == 150
    assert set(created) < set(found)
    assert max(sizes) < 1.2 * (1 << 20)
    assert len(sizes) == 3


async def test_n1_a_change_needs_the_current_etag(client: EndpointsClient) -> None:
    id_ = await client.endpoint()
    first = await client("GetEndpoint", id=str(id_))
    tags = [first.etag]
    change = {"event_types": ["a"], "rate_limit": 5, "url": URL + "/new"}
    changed = await client("ChangeEndpoint", id=str(id_), change=change, if_match=tags)
    assert (changed.url, changed.event_types) == (URL + "/new", ["a"])
    assert changed.etag != first.etag
    # The same request, delivered again.
    again = await client("ChangeEndpoint", id=str(id_), change=change, if_match=tags)
    assert again == changed
    requests: tuple[tuple[str, dict[str, Any]], ...] = (
        ("ChangeEndpoint", {"change": {"description": "x"}}),
        ("DeleteEndpoint", {}),
        ("PauseEndpoint", {}),
        ("RotateSecret", {}),
    )
    for operation, body in requests:
        response = await client(operation, id=str(id_), if_match=tags, **body)
        assert code(response) is FailureCode.PRECONDITION_FAILED
    without_limit = await client("ChangeEndpoint", id=str(id_), change={"rate_limit": None})
    assert without_limit.rate_limit is None
    assert code(await client("ChangeEndpoint", id=str(id_), change={})) is FailureCode.INVALID
    response = await client("ChangeEndpoint", id=str(id_), change={"url": None})
    assert code(response) is FailureCode.INVALID


async def test_n1_a_rotation_keeps_the_old_secret_for_a_day(client: EndpointsClient) -> None:
    id_ = await client.endpoint()
    before = CIPHER.decrypt((await stored(client, id_))["secret"]).decode()
    rotated = await client("RotateSecret", id=str(id_), idempotency_key="k")
    again = await client("RotateSecret", id=str(id_), idempotency_key="k")
    assert again == rotated
    assert rotated.secret != before
    row = await stored(client, id_)
    assert CIPHER.decrypt(row["secret"]).decode() == rotated.secret
    assert CIPHER.decrypt(row["old_secret"]).decode() == before
    left = rotated.old_secret_until - datetime.now(UTC)
    assert timedelta(hours=23) < left < timedelta(hours=25)


async def test_n4_a_paused_endpoint_keeps_its_messages_in_order(client: EndpointsClient) -> None:
    id_ = await client.endpoint()
    await client.send(id="before")
    await client.control("PauseEndpoint", id_)
    assert await client.statuses(id_) == ["waiting"]
    for number in range(3):
        await client.send(id=f"m{number}")
    assert await client.statuses(id_) == ["waiting"] * 4
    await client("ResumeEndpoint", id=str(id_))
    await client.send(id="after")  # before the sweep: it must not overtake the others
    await client.work()
    assert await client.statuses(id_) == ["pending"] * 5
    rows = await client.connection.fetch(
        "SELECT message_id FROM subscriptions.deliveries ORDER BY due_at"
    )
    assert [row["message_id"] for row in rows] == ["before", "m0", "m1", "m2", "after"]
    assert not (await stored(client, id_))["sweeping"]


async def test_n5_a_resumed_endpoint_in_order_sends_one_message_at_a_time(
    client: EndpointsClient,
) -> None:
    id_ = await client.endpoint(ordered=True)
    await client("TestEndpoint", id=str(id_))  # it is sent beside the order
    await client.connection.execute("UPDATE subscriptions.deliveries SET status = 'dispatched'")
    await client.control("PauseEndpoint", id_)
    for number in range(3):
        await client.send(id=f"m{number}")
    await client.control("ResumeEndpoint", id_)
    assert await client.statuses(id_) == ["dispatched", "pending", "waiting", "waiting"]
    await client.control("ChangeEndpoint", id_, change={"ordered": False})
    assert await client.statuses(id_) == ["dispatched"] + ["pending"] * 3


async def test_n1_a_resumed_endpoint_gets_its_messages_at_its_rate(
    client: EndpointsClient,
) -> None:
    id_ = await client.endpoint(rate_limit=4)
    await client.control("PauseEndpoint", id_)
    for _ in range(3):
        await client.send()
    await client.control("ResumeEndpoint", id_)
    await client.send()
    rows = await client.connection.fetch("SELECT due_at FROM subscriptions.deliveries ORDER BY id")
    due = [row["due_at"] for row in rows]
    for earlier, later in itertools.pairwise(due):
        assert later - earlier >= timedelta(seconds=0.25)


async def test_n1_a_deleted_endpoint_cancels_what_is_not_finished(client: EndpointsClient) -> None:
    id_ = await client.endpoint()
    await client.send(id="done")
    await client.settle(id_, "delivered")
    await client.send(id="open")
    await client.control("DeleteEndpoint", id_)
    assert await client.statuses(id_) == ["delivered", "cancelled"]
    assert code(await client("GetEndpoint", id=str(id_))) is FailureCode.NOT_FOUND
    assert code(await client("DeleteEndpoint", id=str(id_))) is FailureCode.NOT_FOUND
    assert (await client.send()).endpoints == 0
    message = await client("GetEndpointMessage", id="open")
    assert [delivery.status for delivery in message.deliveries] == ["cancelled"]


async def test_n4_a_disabled_endpoint_is_reported_once_to_the_others(
    client: EndpointsClient,
) -> None:
    failing, other = await client.endpoint(), await client.endpoint("endpoint.*")
    unconcerned = await client.endpoint("invoice.*")
    await client.send("order.paid", id="m1")
    await client.connection.execute(
        "UPDATE subscriptions.endpoints SET status = 'disabled', sweeping = true,"
        " failing_since = now() WHERE id = $1",
        failing,
    )
    await client.work()
    assert await client.statuses(failing) == ["failed"]
    assert await client.statuses(unconcerned) == []
    page = await client("ListEndpointMessages", id=str(other))
    assert [delivery.event_type for delivery in page.items] == ["endpoint.disabled"]
    message = await client("GetEndpointMessage", id=page.items[0].message_id)
    assert message.payload["endpoint_id"] == str(failing)
    assert [fact.model_dump()["endpoint_id"] for fact in client.facts] == [failing]
    # After a crash before the last statement, the report is the same.
    await client.connection.execute(
        "UPDATE subscriptions.endpoints SET sweeping = true WHERE id = $1", failing
    )
    await client.work()
    assert await client.statuses(other) == ["pending"]
    assert client.facts[0] == client.facts[1]
    resumed = await client.control("ResumeEndpoint", failing)
    assert (resumed.status, resumed.failing_since) == ("active", None)


async def test_n4_a_client_that_uses_the_id_of_the_report_stops_no_work(
    client: EndpointsClient,
) -> None:
    failing, other = await client.endpoint(), await client.endpoint("endpoint.*")
    row = await client.connection.fetchrow(
        "UPDATE subscriptions.endpoints SET status = 'disabled', sweeping = true,"
        " failing_since = now() WHERE id = $1 RETURNING failing_since",
        failing,
    )
    used = disabled_id(failing, row["failing_since"])
    await client.send("order.paid", id=f"msg_{used.hex}")
    await client.work()
    assert await client.statuses(other) == []
    assert not (await stored(client, failing))["sweeping"]
    assert len(client.facts) == 1


async def test_a_sweep_waits_for_a_lock_on_its_endpoint(
    client: EndpointsClient,
) -> None:
    id_ = await client.endpoint()
    await client.control("PauseEndpoint", id_)
    await client.send()
    await client("ResumeEndpoint", id=str(id_))
    async with client.connection.transaction():
        await client.connection.execute(
            "SELECT FROM subscriptions.endpoints WHERE id = $1 FOR NO KEY UPDATE", id_
        )
        sweep = asyncio.create_task(client.worker.run_once())
        await asyncio.sleep(0.2)
        assert not sweep.done()
    await sweep
    assert await client.statuses(id_) == ["pending"]


async def test_a_resumed_endpoint_sends_at_once_what_its_rate_had_postponed(
    client: EndpointsClient,
) -> None:
    id_ = await client.endpoint(rate_limit=0.1)
    for _ in range(3):
        await client.send()
    for _ in range(2):
        await client.control("PauseEndpoint", id_)
        await client.send()
        await client.control("ResumeEndpoint", id_)
    rows = await client.connection.fetch(
        "SELECT extract(epoch FROM due_at - now())::float8 AS seconds"
        " FROM subscriptions.deliveries ORDER BY id"
    )
    assert [round(row["seconds"], -1) for row in rows] == [10, 20, 30, 40, 50]


async def test_a_sweep_of_a_pause_begins_each_batch_behind_the_last_one(
    client: EndpointsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So its cost does not grow with what it has done."""
    monkeypatch.setattr(sweeping, "BATCH", 2)
    id_ = await client.endpoint()
    for _ in range(5):
        await client.send()
    await client("PauseEndpoint", id=str(id_))
    await client.worker.run_once()
    assert await client.statuses(id_) == ["waiting"] * 2 + ["pending"] * 3
    await client.connection.execute(  # as a failed dispatch; a claim will hold it
        "UPDATE subscriptions.deliveries SET status = 'pending'"
        " WHERE id = (SELECT min(id) FROM subscriptions.deliveries)"
    )
    await client.work()
    assert await client.statuses(id_) == ["pending"] + ["waiting"] * 4
    await client.control("ResumeEndpoint", id_)
    await client.control("PauseEndpoint", id_)
    assert await client.statuses(id_) == ["waiting"] * 5


async def test_a_sweep_goes_on_when_a_fact_settles_a_delivery_of_its_batch(
    client: EndpointsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "BATCH", 2)
    id_ = await client.endpoint()
    for _ in range(4):
        await client.send()
    await client("DeleteEndpoint", id=str(id_))
    async with client.connection.transaction():
        await client.connection.execute(
            "UPDATE subscriptions.deliveries SET status = 'delivered', finished_at = now()"
            " WHERE id = (SELECT min(id) FROM subscriptions.deliveries)"
        )
        sweep = asyncio.create_task(client.work())
        await asyncio.sleep(0.2)
    await sweep
    assert await client.statuses(id_) == ["delivered", *["cancelled"] * 3]


async def test_n4_a_large_backlog_is_swept_in_batches_by_several_processes(
    client: EndpointsClient,
) -> None:
    id_ = await client.endpoint()
    await client.connection.execute(
        "INSERT INTO subscriptions.deliveries (endpoint_id, client_id, message_id, webhook_id,"
        " in_order, status, due_at)"
        " SELECT $1, 'shop', 'm', 'm', false, 'pending', now() FROM generate_series(1, 2500)",
        id_,
    )
    await client("PauseEndpoint", id=str(id_))
    other = client.as_client("shop")
    await asyncio.gather(client.work(), other.work())
    await client.work()
    assert set(await client.statuses(id_)) == {"waiting"}
    assert not (await stored(client, id_))["sweeping"]
