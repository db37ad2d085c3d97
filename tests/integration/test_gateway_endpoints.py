"""N1 to N4 over HTTP: endpoints through the real gateway, subscriptions and callback service."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from services.sandbox.misbehaviour import response
from tests.fakes.gateway import Caller
from tests.fakes.receivers import Behaviour, ClientConnection, Receiver, respond, serve
from tests.fakes.system import StartSystem, System
from tests.fakes.waiting import until

LONG_AGO = "2026-01-01T00:00:00Z"
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def services(start_system: StartSystem) -> Iterator[System]:
    with start_system(
        "subscriptions", "callback", RINGBACK_ENDPOINT_DISABLE_AFTER="0.5"
    ) as started:
        yield started


@pytest.fixture
async def shop(services: System, request: pytest.FixtureRequest) -> AsyncIterator[Caller]:
    """Yield a caller that no other test uses."""
    async with services.calling() as call:
        yield call.as_client(request.node.name[:200])


async def create(shop: Caller, url: str, **fields: Any) -> Any:
    created = await shop("POST", "/v1/endpoints", {"url": url, "event_types": ["*"]} | fields)
    assert created.status == 201, created.text
    return created.json


async def send(shop: Caller, event_type: str = "invoice.paid", **fields: Any) -> Any:
    body = {"event_type": event_type, "payload": {"total": "12.50"}} | fields
    sent = await shop("POST", "/v1/messages", body)
    assert sent.status == 202, sent.text
    return sent.json


async def received(receiver: Receiver, count: int) -> list[str]:
    """Wait for so many requests, and return their ids in order."""
    await until(lambda: len(receiver.requests) >= count)
    return [request.headers["webhook-id"] for request in receiver.requests]


async def wait_for_status(shop: Caller, message: str, status: str) -> None:
    async def arrived() -> bool:
        found = (await shop("GET", f"/v1/messages/{message}")).json
        return {delivery["status"] for delivery in found["deliveries"]} == {status}

    await until(arrived)


def switching(status: list[int]) -> Behaviour:
    """Return a behaviour that responds with the current status."""

    async def behave(connection: ClientConnection) -> None:
        while True:
            await connection.request()
            await connection.write(response(status[0]))

    return behave


async def test_n1_n2_a_message_reaches_all_endpoints_that_select_it_under_one_id(
    shop: Caller,
) -> None:
    async with serve(respond()) as first, serve(respond()) as second, serve(respond()) as third:
        endpoint = await create(
            shop, first.url, event_types=["invoice.*"], headers={"X-Tenant": "7"}
        )
        await create(shop, second.url)
        await create(shop, third.url, event_types=["order.*"])
        payload = {"b": "ü", "a": [1, None]}
        accepted = await shop(
            "POST",
            "/v1/messages",
            {"id": "invoice-7", "event_type": "invoice.paid", "payload": payload},
        )
        assert (accepted.status, accepted.json) == (202, {"id": "invoice-7", "endpoints": 2})
        for receiver in (first, second):
            assert await received(receiver, 1) == ["invoice-7"]
        request = first.requests[0]
        assert request.body == json.dumps(payload, sort_keys=True).encode()
        assert request.headers["x-tenant"] == "7"
        Webhook(endpoint["secret"]).verify(request.body, request.headers)
        await wait_for_status(shop, "invoice-7", "delivered")
        attempts = (await shop("GET", "/v1/messages/invoice-7/attempts")).json
        messages = (await shop("GET", f"/v1/endpoints/{endpoint['id']}/messages")).json
        assert third.requests == []
    assert attempts["next_cursor"] is None
    assert [(each["attempt"], each["status_code"]) for each in attempts["items"]] == [(1, 200)] * 2
    assert messages["items"][0]["message_id"] == "invoice-7"
    assert messages["items"][0]["attempts"] == 1


@pytest.mark.parametrize("id_", ["a.b", "...", "a?b#c", "a%20b", "a%2Fb"])
async def test_n2_the_location_of_a_message_finds_it_whatever_its_id(
    shop: Caller, id_: str
) -> None:
    sent = await shop("POST", "/v1/messages", {"id": id_, "event_type": "a", "payload": 1})
    found = await shop("GET", sent.headers["Location"])
    assert (found.status, found.json["id"]) == (200, id_)


async def test_n1_row_31_both_secrets_sign_after_a_rotation(shop: Caller) -> None:
    async with serve(respond()) as receiver:
        endpoint = await create(shop, receiver.url)
        path = f"/v1/endpoints/{endpoint['id']}/rotate-secret"
        rotated = (await shop("POST", path)).json
        await send(shop)
        await received(receiver, 1)
        request = receiver.requests[0]
    for secret in (endpoint["secret"], rotated["secret"]):
        Webhook(secret).verify(request.body, request.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").verify(request.body, request.headers)


async def test_n3_a_test_message_shows_its_attempt(shop: Caller) -> None:
    async with serve(respond()) as receiver:
        endpoint = await create(shop, receiver.url, event_types=["order.paid"])
        tested = await shop("POST", f"/v1/endpoints/{endpoint['id']}/test")
        assert tested.status == 202
        message_id = tested.json["message_id"]
        assert await received(receiver, 1) == [message_id]
    await wait_for_status(shop, message_id, "delivered")


async def test_n4_a_paused_endpoint_gets_its_messages_in_order_when_it_resumes(
    shop: Caller,
) -> None:
    async with serve(respond()) as receiver:
        endpoint = await create(shop, receiver.url, ordered=True)
        path = f"/v1/endpoints/{endpoint['id']}"
        assert (await shop("POST", f"{path}/pause")).json["status"] == "paused"
        ids = [f"m{number}" for number in range(5)]
        for id_ in ids:
            await send(shop, id=id_)
        waiting = (await shop("GET", f"{path}/messages?status=waiting")).json["items"]
        assert [item["message_id"] for item in waiting] == ids[::-1]
        assert receiver.requests == []
        assert (await shop("POST", f"{path}/resume")).json["status"] == "active"
        assert await received(receiver, 5) == ids


async def test_n3_n4_an_endpoint_that_is_gone_is_disabled_and_gets_everything_by_one_replay(
    shop: Caller,
) -> None:
    status = [410]
    async with serve(switching(status)) as failing, serve(respond()) as other:
        endpoint = await create(shop, failing.url, event_types=["invoice.*"])
        await create(shop, other.url, event_types=["endpoint.disabled"])
        path = f"/v1/endpoints/{endpoint['id']}"
        await send(shop, id="m0")
        (report,) = await received(other, 1)
        assert json.loads(other.requests[0].body)["endpoint_id"] == endpoint["id"]
        found = (await shop("GET", path)).json
        assert found["status"] == "disabled"
        assert found["failing_since"] is not None
        for number in range(1, 4):
            await send(shop, id=f"m{number}")
        failed = (await shop("GET", f"{path}/messages?status=failed")).json["items"]
        assert [item["last_error"] for item in failed[:3]] == ["endpoint_disabled"] * 3
        for action, body in (("test", None), ("replay", {"since": LONG_AGO})):
            (await shop("POST", f"{path}/{action}", body)).problem(409)
        assert len(failing.requests) == 1
        status[0] = 200
        assert (await shop("PATCH", path, {"status": "active"})).json["status"] == "active"
        replayed = await shop("POST", f"{path}/replay", {"since": LONG_AGO})
        assert replayed.status == 202
        (listed,) = (await shop("GET", f"{path}/replays")).json["items"]
        assert listed["id"] == replayed.json["id"]
        assert await received(failing, 5) == ["m0", "m0", "m1", "m2", "m3"]
        await wait_for_status(shop, "m3", "delivered")
        again = await shop("POST", f"{path}/replay", {"message_id": "m2"})
        assert again.status == 202
        assert (await received(failing, 6))[5] == "m2"
        assert await received(other, 1) == [report]
    message = (await shop("GET", "/v1/messages/m0")).json
    assert message["deliveries"][0]["attempts"] == 2


async def test_n4_an_endpoint_that_fails_for_the_configured_time_is_disabled(
    shop: Caller,
) -> None:
    async with serve(respond(500)) as failing:
        endpoint = await create(shop, failing.url)
        await send(shop, id="m")

        async def disabled() -> bool:
            found = (await shop("GET", f"/v1/endpoints/{endpoint['id']}")).json
            return bool(found["status"] == "disabled")

        await until(disabled)
        assert len(failing.requests) > 1
    attempts = (await shop("GET", "/v1/messages/m/attempts")).json["items"]
    assert {attempt["status_code"] for attempt in attempts} == {500}


async def test_n1_row_27_a_hostile_url_is_rejected_or_never_reached(shop: Caller) -> None:
    for url in ("http://user@example.com/", "file:///etc/passwd", "http://0x7f000001/", "x"):
        body = {"url": url, "event_types": ["*"]}
        assert (await shop("POST", "/v1/endpoints", body)).rejected_fields() == {"url"}
    await create(shop, "http://169.254.169.254/latest/meta-data")
    await send(shop, id="m")
    await wait_for_status(shop, "m", "failed")
    delivery = (await shop("GET", "/v1/messages/m")).json["deliveries"][0]
    assert "not a public address" in delivery["last_error"]


async def test_n1_endpoints_of_another_client_do_not_exist(shop: Caller) -> None:
    endpoint = await create(shop, "https://customer.example.com/hook-canary")
    path = f"/v1/endpoints/{endpoint['id']}"
    found = await shop("GET", path)
    assert "secret" not in found.json
    etag = found.headers["ETag"]
    assert (await shop("GET", path, If_None_Match=etag)).status == 304
    changed = await shop("PATCH", path, {"description": "Billing"}, If_Match=etag)
    assert (changed.status, changed.json["description"]) == (200, "Billing")
    (await shop("PATCH", path, {"description": "x"}, If_Match=etag)).problem(412)
    other = shop.as_client("somebody-else")
    for method, suffix, body in (
        ("GET", "", None),
        ("PATCH", "", {"description": "mine"}),
        ("DELETE", "", None),
        ("POST", "/pause", None),
        ("POST", "/rotate-secret", None),
        ("POST", "/replay", {"since": LONG_AGO}),
        ("GET", "/messages", None),
    ):
        (await other(method, path + suffix, body)).problem(404)
        (await shop(method, f"/v1/endpoints/{UNKNOWN}{suffix}", body)).problem(404)
        (await shop(method, f"/v1/endpoints/nonsense{suffix}", body)).problem(404)
    assert (await other("GET", "/v1/endpoints")).json == {"items": [], "next_cursor": None}
    (await shop("GET", "/v1/messages/unknown")).problem(404)
    assert (await shop("DELETE", path)).status == 204
    (await shop("GET", path)).problem(404)


async def test_n1_no_secret_and_no_path_of_a_url_is_logged(shop: Caller, services: System) -> None:
    endpoint = await create(
        shop, "https://customer.example.com/hook-canary", headers={"X-Key": "header-canary"}
    )
    await shop("POST", f"/v1/endpoints/{endpoint['id']}/rotate-secret")
    await until(lambda: services["subscriptions"].logged("secret rotated"))
    for service in services.values():
        for canary in ("hook-canary", "header-canary", endpoint["secret"]):
            assert canary not in service.output
