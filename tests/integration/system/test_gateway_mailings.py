"""M2 to M4 over HTTP: mailings through the real gateway, mailings, scheduler and delivery."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest

from tests.fakes.campaigns import soon
from tests.fakes.gateway import Caller
from tests.fakes.system import System
from tests.fakes.waiting import until

UNKNOWN = "00000000-0000-4000-8000-000000000000"
SERVICES = ("mailings", "scheduler", "delivery")


@pytest.fixture
async def call(services: System) -> AsyncIterator[Caller]:
    async with services.calling() as caller:
        yield caller


@pytest.fixture
def shop(call: Caller, request: pytest.FixtureRequest) -> Caller:
    """Return a caller that no other test uses."""
    return call.as_client(request.node.name[:200])


def mailing(**fields: Any) -> dict[str, Any]:
    return {"text": "Hello", "start_at": soon(600), "end_at": soon(3600), **fields}


async def wait_for_status(call: Caller, path: str, status: str, within: float = 10.0) -> None:
    async def arrived() -> bool:
        found = (await call("GET", path)).json
        return bool(found["status"] == status)

    await until(arrived, within)


async def test_m2_a_mailing_is_created_read_changed_and_deleted(shop: Caller) -> None:
    body = mailing(
        filter={"operator_codes": ["916"], "tags": []},
        local_hours={"from": "09:00", "to": "21:00"},
        rate_per_minute=600,
    )
    created = await shop("POST", "/v1/mailings", body)
    assert created.status == 201, created.text
    assert created.json["status"] == "scheduled"
    assert {name: created.json[name] for name in ("filter", "local_hours", "rate_per_minute")} == {
        "filter": {"operator_codes": ["916"], "tags": []},
        "local_hours": {"from": "09:00", "to": "21:00"},
        "rate_per_minute": 600,
    }
    path = created.headers["Location"]
    found = await shop("GET", path)
    assert (found.status, found.json) == (200, created.json)
    assert found.headers["ETag"] == found.json["etag"]
    unchanged = await shop("GET", path, If_None_Match=found.headers["ETag"])
    assert (unchanged.status, unchanged.text) == (304, "")

    changed = await shop("PATCH", path, {"local_hours": None}, If_Match=found.headers["ETag"])
    assert changed.status == 200, changed.text
    assert changed.json["local_hours"] is None
    (await shop("PATCH", path, {"text": "B"}, If_Match=found.headers["ETag"])).problem(412)
    listed = await shop("GET", "/v1/mailings?status=scheduled")
    assert listed.json == {"items": [changed.json], "next_cursor": None}

    deleted = await shop("DELETE", path)
    assert (deleted.status, deleted.text) == (204, "")
    for method in ("GET", "DELETE"):
        assert (await shop(method, path)).problem(404)["result"] == "not_found"


async def test_m2_a_refused_action_is_409_and_names_the_status(shop: Caller) -> None:
    created = await shop("POST", "/v1/mailings", mailing(draft=True))
    assert created.json["status"] == "draft"
    path = created.headers["Location"]
    assert "draft" in (await shop("POST", f"{path}/pause")).problem(409)["detail"]
    started = await shop("POST", f"{path}/start")
    assert (started.status, started.json["status"]) == (200, "scheduled")
    cancelled = await shop("POST", f"{path}/cancel")
    assert (cancelled.status, cancelled.json["status"]) == (200, "cancelled")
    assert "cancelled" in (await shop("POST", f"{path}/resume")).problem(409)["detail"]
    assert (await shop("DELETE", path)).status == 204


async def test_m2_a_running_mailing_is_paused_resumed_and_cancelled_with_delivery(
    shop: Caller,
) -> None:
    await shop("POST", "/v1/clients", {"phone": "79160000001", "timezone": "UTC"})
    hours = closed_hours()
    created = await shop("POST", "/v1/mailings", mailing(start_at=soon(-1), local_hours=hours))
    assert created.json["status"] == "running"
    path = created.headers["Location"]
    for action, status in (
        ("pause", "paused"),
        ("resume", "running"),
        ("pause", "paused"),
        ("cancel", "cancelled"),
    ):
        result = await shop("POST", f"{path}/{action}")
        assert (result.status, result.json["status"]) == (200, status), result.text
    (await shop("DELETE", path, If_Match='"1"')).problem(412)


async def test_m4_a_later_mailing_starts_within_a_second_by_the_scheduler(shop: Caller) -> None:
    await shop("POST", "/v1/clients", {"phone": "79160000001", "timezone": "UTC"})
    created = await shop(
        "POST", "/v1/mailings", mailing(start_at=soon(2), local_hours=closed_hours())
    )
    path = created.headers["Location"]
    assert created.json["status"] == "scheduled"
    await wait_for_status(shop, path, "running")
    found = (await shop("GET", path)).json
    # Without the scheduler it would start five seconds late.
    assert seconds_between(found["start_at"], found["started_at"]) < 4


async def test_m2_the_audience_is_counted_and_a_test_message_is_sent(shop: Caller) -> None:
    for number in range(3):
        client = {"phone": f"7916000000{number}", "timezone": "UTC", "tag": f"tag-{number % 2}"}
        await shop("POST", "/v1/clients", client)
    counted = await shop("POST", "/v1/mailings/audience", {"filter": {"tags": ["tag-0"]}})
    assert (counted.status, counted.json) == (200, {"clients": 2})
    unknown = await shop("POST", "/v1/mailings/audience", {"filter": {"tag": "x"}})
    assert unknown.rejected_fields() == {"filter.tag"}
    created = await shop("POST", "/v1/mailings", mailing())
    path = created.headers["Location"]
    sent = await shop("POST", f"{path}/test", {"phone": "79161234567"})
    assert (sent.status, set(sent.json)) == (200, {"message_id"})
    messages = await shop("GET", f"{path}/messages?client_id={UNKNOWN}")
    assert messages.json == {"items": [], "next_cursor": None}
    rejected = await shop("GET", f"{path}/messages?client_id=7")
    assert rejected.rejected_fields() == {"client_id"}
    assert (await shop("POST", f"{path}/test", {"phone": "8"})).rejected_fields() == {"phone"}
    for _ in range(9):
        sent = await shop("POST", f"{path}/test", {"phone": "79161234567"})
    limited = await shop("POST", f"{path}/test", {"phone": "79161234567"})
    assert sent.status == 200
    assert limited.problem(429)["type"] == "urn:ringback:problem:too_many_requests"
    assert 1 <= int(limited.headers["Retry-After"]) <= 6
    messages = await shop("GET", f"{path}/messages")
    assert messages.json == {"items": [], "next_cursor": None}


async def test_m2_invalid_mailings_name_every_wrong_field(shop: Caller) -> None:
    for body, fields in (
        ({"text": "Hi"}, {"end_at"}),
        (mailing(text=None), {"text"}),
        (mailing(end_at=soon(500)), {"end_at"}),
        (mailing(start_at=soon(-20), end_at=soon(-10)), {"end_at"}),
        (mailing(text="{{ nobody }}"), {"text"}),
        (mailing(local_hours={"from": "25:00", "to": "9"}), {"local_hours.from", "local_hours.to"}),
        (mailing(channel="fax", rate_per_minute=0), {"channel", "rate_per_minute"}),
        (mailing(unknown=1), {"unknown"}),
    ):
        result = await shop("POST", "/v1/mailings", body)
        assert result.rejected_fields() == fields, result.text


async def test_m2_mailings_of_other_callers_do_not_exist(call: Caller, shop: Caller) -> None:
    created = await shop("POST", "/v1/mailings", mailing())
    for stranger in (call, call.as_client("stranger")):
        path = created.headers["Location"]
        for method, place in (
            ("GET", path),
            ("DELETE", path),
            ("POST", f"{path}/cancel"),
            ("GET", f"{path}/messages"),
            ("GET", f"/v1/mailings/{UNKNOWN}"),
        ):
            (await stranger(method, place)).problem(404)
        items = (await stranger("GET", "/v1/mailings")).json["items"]
        assert created.json["id"] not in {item["id"] for item in items}
    assert (await shop("GET", path)).json == created.json


async def test_m2_a_repeated_creation_returns_the_same_mailing(shop: Caller) -> None:
    body = mailing()
    first = await shop("POST", "/v1/mailings", body, Idempotency_Key="k")
    again = await shop("POST", "/v1/mailings", body, Idempotency_Key="k")
    assert again.json["id"] == first.json["id"]
    (await shop("POST", "/v1/mailings", mailing(text="B"), Idempotency_Key="k")).problem(409)


def closed_hours() -> dict[str, str]:
    """Return local hours that are over in UTC, so a mailing runs but sends nothing."""
    hour = int(soon(0)[11:13])
    return {"from": f"{(hour + 4) % 24:02}:00", "to": f"{(hour + 5) % 24:02}:00"}


def seconds_between(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
