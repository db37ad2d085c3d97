"""`ringback schedule`, as a client of the gateway."""

import json
from typing import Any

import pytest

from tests.fakes.command import Output, ringback
from tests.fakes.gateway import CALLBACK, base_url, calling, ticket
from tests.fakes.scheduler import FakeScheduler
from tests.fakes.service import Service
from tests.fakes.waiting import until

KEYED = CALLBACK | {"group_key": "group/7 ü", "event_key": "?"}
UNKNOWN = "00000000-0000-4000-8000-000000000000"


class Command:
    """The command with the URL of the gateway, and a method that creates callbacks."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def __call__(self, *arguments: str, stdin: str = "", **settings: str) -> Output:
        return await ringback(
            "schedule",
            *arguments,
            *("--url", self.url),
            amqp_url=None,
            stdin=stdin,
            **settings,
        )

    async def create(self, callback: dict[str, Any], client_id: str | None = None) -> str:
        async with calling(self.url) as call:
            created = await call.as_client(client_id)("POST", "/v1/callbacks", callback)
            return str(created.json["id"])


@pytest.fixture
async def schedule(gateway_service: Service, scheduler: FakeScheduler) -> Command:
    assert scheduler
    await until(gateway_service.is_ready)
    return Command(await base_url(gateway_service))


async def test_s7_list_prints_columns_or_json(schedule: Command) -> None:
    first = await schedule.create(CALLBACK)
    second = await schedule.create(KEYED)
    listed = await schedule("list")
    assert listed.code == 0, listed.err
    title, *rows = listed.out.splitlines()
    assert title.split() == ["ID", "STATUS", "RUN", "AT", "ATTEMPTS", "GROUP", "EVENT"]
    assert {row.split()[0] for row in rows} == {first, second}
    assert [row.index("2030-01-01T12:00:00Z") for row in rows] == [title.index("RUN AT")] * 2
    assert "2 shown; no more follow" in listed.err
    as_json = await schedule("list", "--group-key", "group/7 ü", "--json")
    assert [item["id"] for item in as_json.json_lines] == [second]


async def test_list_reads_pages_up_to_its_limit(
    schedule: Command, scheduler: FakeScheduler
) -> None:
    identity = await schedule.create(CALLBACK)
    status = scheduler.callbacks[None][identity]

    def page(body: dict[str, Any]) -> dict[str, Any]:
        at = int(body.get("cursor", 0))
        items = [status] * min(body["limit"], 1000)
        return {"ok": {"items": items, "next_cursor": str(at + len(items))}}

    scheduler.responses["ListCallbacks"] = page
    listed = await schedule("list", "--limit", "2500", "--status", "failed", "--json")
    assert len(listed.json_lines) == 2500
    bodies = [body for operation, _, body in scheduler.requests if operation == "ListCallbacks"]
    assert [body.get("cursor") for body in bodies] == [None, "1000", "2000"]
    assert {body["status"] for body in bodies} == {"failed"}
    listed = await schedule("list", "--limit", "3")
    assert "more follow" in listed.err


async def test_s9_the_ticket_selects_the_client(schedule: Command) -> None:
    callback_id = await schedule.create(CALLBACK, "shop")
    shown = await schedule("show", callback_id, "--ticket", ticket("shop"), "--json")
    assert json.loads(shown.out)["id"] == callback_id
    assert (await schedule("show", callback_id, RINGBACK_TICKET=ticket("shop"))).code == 0
    for denied in (
        await schedule("show", callback_id),
        await schedule("show", callback_id, "--ticket", ticket("x")),
    ):
        assert (denied.code, denied.out) == (1, "")
        assert "callback not found" in denied.err
    refused = await schedule("list", "--ticket", "ticket-canary")
    assert refused.code == 1
    assert "ticket is not valid" in refused.err
    assert "canary" not in refused.err


async def test_s8_cancel_by_id_by_keys_and_by_group(
    schedule: Command, scheduler: FakeScheduler
) -> None:
    identity = await schedule.create(KEYED)
    cancelled = await schedule("cancel", identity)
    assert cancelled.out == f"{identity}  cancelled\n"
    keys = ("--group-key", "group/7 ü", "--event-key", "?")
    assert (await schedule("cancel", *keys)).out == f"{identity}  cancelled\n"
    assert scheduler.requests[-1][2] == {"group_key": "group/7 ü", "event_key": "?"}
    group = await schedule("cancel", *keys[:2])
    assert group.out == "1 cancelled\n"
    missing = await schedule("cancel", UNKNOWN)
    assert missing.code == 1
    wrong = await schedule("cancel")
    assert wrong.code == 2
    assert "Specify ID" in wrong.err


async def test_retry_requires_confirmation_and_passes_its_filters_on(
    schedule: Command, scheduler: FakeScheduler
) -> None:
    identity = await schedule.create(CALLBACK)
    dry_run = await schedule("retry", "--dry-run", "--group-key", "g", "--limit", "5")
    assert (dry_run.code, dry_run.out) == (0, f"{identity}\n")
    assert "1 would be retried" in dry_run.err
    assert scheduler.requests[-1][2] == {"group_key": "g", "limit": 5, "dry_run": True}
    request_count = len(scheduler.requests)
    refused = await schedule("retry", stdin="n\n")
    assert refused.code == 1
    assert len(scheduler.requests) == request_count
    done = await schedule("retry", "--failed-after", "2026-11-20T00:00:00Z", "--yes", "--json")
    assert done.json_lines == [{"count": 1, "ids": [identity]}]
    assert scheduler.requests[-1][2]["failed_after"] == "2026-11-20T00:00:00Z"
    assert scheduler.requests[-1][2]["dry_run"] is False


async def test_wrong_fields_are_printed_on_a_line_each(
    schedule: Command, scheduler: FakeScheduler
) -> None:
    errors = [{"field": "failed_after", "message": "Input should have timezone info"}]
    scheduler.responses["RetryCallbacks"] = lambda _: {
        "error": {"code": "invalid", "detail": "1 field is wrong", "errors": errors}
    }
    wrong = await schedule("retry", "--yes", "--failed-after", "yesterday")
    assert wrong.code == 1
    assert "1 field is wrong (status 422)" in wrong.err
    assert "  failed_after: Input should have timezone info" in wrong.err


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://localhost:1/x"])
async def test_the_error_without_a_gateway_says_what_to_do(url: str) -> None:
    failed = await ringback("schedule", "list", "--url", url, amqp_url=None)
    assert failed.code == 1
    assert "Cannot reach the gateway" in failed.err
    assert "ringback run gateway" in failed.err


async def test_an_invalid_url_is_wrong_usage() -> None:
    wrong = await ringback("schedule", "list", "--url", "localhost:8080", amqp_url=None)
    assert wrong.code == 2
