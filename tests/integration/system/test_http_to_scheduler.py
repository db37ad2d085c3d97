"""S1 to S9 and S11 over HTTP, through the gateway, the scheduler and the callback service."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from services.gateway import examples
from tests.fakes.command import Output, ringback, start
from tests.fakes.gateway import Caller, base_url, ticket
from tests.fakes.sandbox import Sandbox
from tests.fakes.system import System
from tests.fakes.waiting import until

LATER = {"url": "https://example.com/hook", "run_at": "2030-01-01T12:00:00Z"}
SECRET = "your-secret-key"


@pytest.fixture
async def call(services: System) -> AsyncIterator[Caller]:
    """Yield a caller with its own client id."""
    async with services.calling() as caller:
        yield caller.as_client(f"client-{uuid4().hex[:8]}")


async def status(call: Caller, callback_id: str, expected: str, within: float = 60.0) -> Any:
    """Wait until a callback has this status, and return the response."""

    async def reached() -> Any:
        response = await call("GET", f"/v1/callbacks/{callback_id}")
        return response.json if response.json["status"] == expected else None

    return await until(reached, within)


async def test_s1_s7_s11_a_callback_arrives_at_its_due_time_and_is_notified(
    call: Caller, receiver: Sandbox
) -> None:
    mailbox = await receiver.mailbox()
    command = {
        "url": mailbox,
        "delay": 1,
        "group_key": "user-7",
        "event_key": "e",
        "context": {"any": ["json"]},
        "hmac_secret": SECRET,
    }
    created = await call("POST", "/v1/callbacks", command)
    assert created.status == 201
    callback_id, run_at = created.json["id"], datetime.fromisoformat(created.json["run_at"])
    assert (await call("GET", created.headers["Location"])).json["status"] == "scheduled"
    [webhook] = await receiver.webhooks(mailbox, webhook_id=callback_id)
    assert webhook["verified"]
    received = datetime.fromisoformat(webhook["received_at"])
    assert timedelta() <= received - run_at < timedelta(seconds=2)
    found = await status(call, callback_id, "notified")
    assert found["attempts"] == 1
    assert found["context"] == {"any": ["json"]}
    assert SECRET not in json.dumps(found)


async def test_s1_without_a_due_time_a_callback_is_sent_at_once(
    call: Caller, receiver: Sandbox
) -> None:
    mailbox = await receiver.mailbox()
    created = await call("POST", "/v1/add", {"url": mailbox})
    await receiver.webhooks(mailbox, webhook_id=created.json["id"])


async def test_the_trace_context_is_passed_from_the_request_to_the_receiver(
    call: Caller, receiver: Sandbox
) -> None:
    mailbox = await receiver.mailbox()
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    await call("POST", "/v1/callbacks", {"url": mailbox, "delay": 1}, traceparent=trace)
    [webhook] = await receiver.webhooks(mailbox)
    assert dict(webhook["headers"])["traceparent"] == trace


async def test_s3_a_used_key_is_a_409_even_after_the_callback_has_finished(call: Caller) -> None:
    keyed = LATER | {"group_key": "g", "event_key": "e"}
    first = await call("POST", "/v1/callbacks", keyed)
    assert first.status == 201
    problem = (await call("POST", "/v1/callbacks", keyed)).problem(409)
    assert {error["field"] for error in problem["errors"]} == {"event_key"}
    await call("DELETE", f"/v1/callbacks/{first.json['id']}")
    (await call("POST", "/v1/callbacks", keyed)).problem(409)
    # Each client has keys of its own.
    assert (await call.as_client("another")("POST", "/v1/callbacks", keyed)).status == 201


async def test_a_repeat_with_its_idempotency_key_has_no_effect_and_another_body_is_rejected(
    call: Caller,
) -> None:
    key = {"Idempotency_Key": "order-7"}
    command = LATER | {"group_key": "once"}
    responses = await asyncio.gather(
        *(call("POST", "/v1/callbacks", command, **key) for _ in range(5))
    )
    assert {response.status for response in responses} == {201}
    assert len({response.json["id"] for response in responses}) == 1
    listed = await call("GET", "/v1/groups/once/callbacks")
    assert len(listed.json["items"]) == 1
    (await call("POST", "/v1/callbacks", command | {"context": 1}, **key)).problem(409)


@pytest.mark.parametrize(
    ("wrong", "fields"),
    [
        ({}, {"url"}),
        ({"url": 7, "colour": "red"}, {"url", "colour"}),
        ({"url": "ftp://example.com"}, {"url"}),
        ({**LATER, "run_at": "2030-01-01T12:00:00"}, {"run_at"}),
        ({**LATER, "run_at": "1970-01-01T00:00:00Z"}, {"run_at"}),
        ({**LATER, "run_at": "2100-01-01T00:00:00Z"}, {"run_at"}),
        ({**LATER, "context": '{"a": NaN}'}, {"context"}),
        ({**LATER, "context": "\x00"}, {"context"}),
        ({**LATER, "group_key": "\x00"}, {"group_key"}),
        (
            {**LATER, "retry_params": {"strategy": "exponential", "quick_retries_count": -1}},
            {"retry_params.quick_retries_count"},
        ),
        (
            {**LATER, "context": {"retry_params": {"strategy": "linear", "base_delay": 0}}},
            {"context.retry_params.strategy", "context.retry_params.base_delay"},
        ),
    ],
    ids=range(11),
)
async def test_s5_a_422_names_every_wrong_field(
    call: Caller, wrong: dict[str, Any], fields: set[str]
) -> None:
    assert (await call("POST", "/v1/callbacks", wrong)).rejected_fields() >= fields


@pytest.mark.parametrize("number", ["1e999999", "-1e999999"])
async def test_row_26_a_number_that_is_too_large_is_a_4xx(call: Caller, number: str) -> None:
    raw = f'{{"url": "https://example.com", "delay": 60, "context": {number}}}'
    assert (await call("POST", "/v1/callbacks", raw=raw)).status in (400, 422)


@pytest.mark.parametrize("levels", [10, 140, 160, 190, 250, 10_000])
async def test_row_26_nested_json_is_returned_unchanged_or_rejected(
    call: Caller, levels: int
) -> None:
    context = "[" * levels + "]" * levels
    raw = f'{{"url": "https://example.com", "delay": 6000, "context": {context}}}'
    created = await call("POST", "/v1/callbacks", raw=raw)
    assert created.status == (201 if levels < 150 else 422 if levels < 200 else 400)
    if created.status == 201:
        found = await call("GET", created.headers["Location"])
        assert json.dumps(found.json["context"]).replace(" ", "") == context
        assert (await call("GET", "/v1/callbacks")).status == 200


async def test_row_33_a_page_of_a_billion_is_a_422_and_pages_contain_each_callback_once(
    call: Caller,
) -> None:
    commands = [LATER | {"group_key": "paged", "context": number} for number in range(25)]
    created = await call("POST", "/v1/callbacks/batch", commands)
    assert created.status == 200
    for wrong in ("1000000000", "0", "-1", "1001"):
        assert (await call("GET", f"/v1/callbacks?limit={wrong}")).rejected_fields() == {"limit"}
    assert (await call("GET", "/v1/callbacks?cursor=nonsense")).rejected_fields() == {"cursor"}
    assert (await call("GET", "/v1/callbacks?status=lost")).rejected_fields() == {"status"}
    listed: list[str] = []
    query = "limit=10"
    while True:
        page = (await call("GET", f"/v1/groups/paged/callbacks?{query}")).json
        listed += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        query = f"limit=10&cursor={page['next_cursor']}"
    assert sorted(listed) == sorted(item["id"] for item in created.json["items"])
    assert len(listed) == 25


async def test_a_batch_has_a_result_for_each_callback(call: Caller) -> None:
    commands = [LATER, {"url": 7}, LATER | {"event_key": "e"}, LATER | {"event_key": "e"}]
    items = (await call("POST", "/v1/callbacks/batch", {"callbacks": commands})).json["items"]
    assert items[0]["status"] == items[2]["status"] == "scheduled"
    assert items[1]["error"]["errors"][0]["field"] == "url"
    assert items[3]["error"]["type"] == "urn:ringback:problem:conflict"
    assert (await call("POST", "/v1/callbacks/batch", [])).rejected_fields() == {"callbacks"}
    assert (await call("POST", "/v1/callbacks/batch", [LATER] * 1001)).rejected_fields() == {
        "callbacks"
    }


async def test_s8_a_rescheduled_callback_arrives_at_its_new_time(
    call: Caller, receiver: Sandbox
) -> None:
    mailbox = await receiver.mailbox()
    created = (
        await call("POST", "/v1/callbacks", LATER | {"url": mailbox, "hmac_secret": SECRET})
    ).json
    run_at = datetime.now(UTC) + timedelta(seconds=1)
    path = f"/v1/callbacks/{created['id']}"
    rescheduled = await call("PATCH", path, {"run_at": run_at.isoformat()})
    assert rescheduled.json["result"] == "rescheduled"
    [webhook] = await receiver.webhooks(mailbox, webhook_id=created["id"])
    assert datetime.fromisoformat(webhook["received_at"]) >= run_at
    await status(call, created["id"], "notified")
    assert (await call("PATCH", path, {"delay": 1})).json["result"] == "already_notified"
    assert (await call("DELETE", path)).json["result"] == "already_notified"


async def test_s8_cancel_between_retries_stops_the_callback(
    call: Caller, receiver: Sandbox
) -> None:
    mailbox = await receiver.mailbox(behaviour={"kind": "fail", "status": 500}, times=100)
    command = {
        "url": mailbox,
        "group_key": "g",
        "event_key": "e",
        "retry_params": {"quick_retries_count": 0, "strategy": "constant", "base_delay": 2},
    }
    created = (await call("POST", "/v1/callbacks", command)).json
    found = await status(call, created["id"], "retrying")
    assert found["last_error"]
    cancelled = await call("DELETE", "/v1/groups/g/callbacks/e")
    assert cancelled.json == {"id": created["id"], "result": "cancelled"}
    attempts = len(await receiver.webhooks(mailbox, webhook_id=created["id"]))
    # The next attempt would have come before the second one of a later callback.
    later = (await call("POST", "/v1/callbacks", command | {"event_key": "later"})).json
    await receiver.webhooks(mailbox, count=2, webhook_id=later["id"])
    assert len(await receiver.webhooks(mailbox, webhook_id=created["id"])) == attempts
    assert (await call("GET", f"/v1/callbacks/{created['id']}")).json["status"] == "cancelled"
    await call("DELETE", "/v1/groups/g/callbacks")


async def test_a_failed_callback_is_listed_and_retried_under_its_id(
    call: Caller, receiver: Sandbox
) -> None:
    mailbox = await receiver.mailbox(behaviour={"kind": "fail", "status": 410}, times=1)
    command = {"url": mailbox, "group_key": "g", "hmac_secret": SECRET}
    callback_id = (await call("POST", "/v1/callbacks", command)).json["id"]
    await status(call, callback_id, "failed")
    failed = await call("GET", "/v1/callbacks?status=failed")
    assert [item["id"] for item in failed.json["items"]] == [callback_id]
    dry_run = await call("POST", "/v1/callbacks/retry", {"group_key": "g", "dry_run": True})
    assert dry_run.json == {"count": 1, "ids": [callback_id]}
    assert (await call("GET", f"/v1/callbacks/{callback_id}")).json["status"] == "failed"
    none = await call("POST", "/v1/callbacks/retry", {"failed_before": "2026-01-01T00:00:00Z"})
    assert none.json == {"count": 0, "ids": []}
    retried = await call("POST", "/v1/callbacks/retry", {"id": callback_id})
    assert retried.json == {"count": 1, "ids": [callback_id]}
    await status(call, callback_id, "notified")
    webhooks = await receiver.webhooks(mailbox, webhook_id=callback_id, count=2)
    assert len(webhooks) == 2


@pytest.mark.parametrize("example", examples.callbacks("https://example.com/webhook").values())
async def test_s10_every_example_is_accepted(call: Caller, example: dict[str, Any]) -> None:
    created = await call("POST", "/v1/callbacks", example)
    assert created.status == 201, created.text
    cancelled = await call("DELETE", f"/v1/callbacks/{created.json['id']}")
    assert cancelled.json["result"] == "cancelled"


async def test_s10_the_batch_example_is_accepted(call: Caller) -> None:
    batch = examples.batch("https://example.com/webhook")
    items = (await call("POST", "/v1/callbacks/batch", batch)).json["items"]
    assert [item["status"] for item in items] == ["scheduled", "scheduled"]


OPERATIONS = [
    ("GET", "/v1/callbacks/{id}", None),
    ("PATCH", "/v1/callbacks/{id}", {"delay": 6000}),
    ("DELETE", "/v1/callbacks/{id}", None),
    ("GET", "/v1/groups/g/callbacks/e", None),
    ("PATCH", "/v1/groups/g/callbacks/e", {"delay": 6000}),
    ("DELETE", "/v1/groups/g/callbacks/e", None),
]


@pytest.mark.parametrize(("method", "path", "body"), OPERATIONS)
@pytest.mark.parametrize("other_client", ["other_client", None])
async def test_s9_no_operation_finds_a_callback_of_another_client(
    call: Caller, method: str, path: str, body: object, other_client: str | None
) -> None:
    callback = (
        await call("POST", "/v1/callbacks", LATER | {"group_key": "g", "event_key": "e"})
    ).json
    own_path = path.replace("{id}", callback["id"])
    before = (await call("GET", f"/v1/callbacks/{callback['id']}")).json
    foreign = await call.as_client(other_client)(method, own_path, body)
    missing = await call.as_client(other_client)(method, path.replace("{id}", str(uuid4())), body)
    # The response is the same as for a callback that does not exist, and nothing has changed.
    assert foreign.problem(404) == missing.problem(404)
    assert (await call("GET", f"/v1/callbacks/{callback['id']}")).json == before


@pytest.mark.parametrize("other_client", ["other_client", None])
async def test_s9_lists_groups_and_retries_contain_nothing_of_another_client(
    call: Caller, other_client: str | None
) -> None:
    callback = (
        await call("POST", "/v1/callbacks", LATER | {"group_key": "g", "event_key": "e"})
    ).json
    other_caller = call.as_client(other_client)
    for response in (
        await other_caller("GET", "/v1/callbacks?limit=1000"),
        await other_caller("GET", "/v1/callbacks?group_key=g&event_key=e"),
        await other_caller("GET", "/v1/groups/g/callbacks"),
        await other_caller("DELETE", "/v1/groups/g/callbacks"),
        await other_caller("POST", "/v1/callbacks/retry", {"group_key": "g"}),
        await other_caller("POST", "/v1/callbacks/retry", {"id": callback["id"]}),
    ):
        assert response.status == 200
        assert callback["id"] not in response.text
    assert (await call("GET", f"/v1/callbacks/{callback['id']}")).json["status"] == "scheduled"


async def bench(services: System, shared_amqp_url: str, client: str, *options: str) -> Output:
    url = await base_url(services["gateway"])
    return await ringback(
        *("bench", url, *options), amqp_url=shared_amqp_url, RINGBACK_TICKET=ticket(client)
    )


async def test_bench_reports_rates_and_delays_over_http_and_amqp(
    services: System, shared_amqp_url: str
) -> None:
    output = await bench(services, shared_amqp_url, "bench", "--count", "100", "--json")
    assert output.code == 0, output.err
    assert [each["via"] for each in output.json_lines] == ["http", "amqp"]
    for seen in output.json_lines:
        assert seen["accepted"] == seen["received"] == 100
        assert seen["missing"] == seen["repeated"] == 0
        assert 0 < seen["accept_p50"] <= seen["accept_p99"]
        assert 0 <= seen["delay_p50"] <= seen["delay_p90"] <= seen["delay_p99"] < 60
        assert seen["accepted_per_second"] > 0


async def test_bench_says_what_to_set_if_the_receiver_may_not_be_reached(
    services: System, shared_amqp_url: str
) -> None:
    # 10.0.0.0/8 is not in the networks that this callback service may reach.
    target = ("--target", "http://10.255.255.1:9", "--yes", "--only", "http")
    output = await bench(services, shared_amqp_url, "bench-forbidden", *target)
    assert output.code == 1
    assert "RINGBACK_CALLBACK_ALLOWED_NETWORKS" in output.err
    assert "10.255.255.1" in output.err


async def test_bench_ends_on_ctrl_c_with_what_was_seen(
    call: Caller, services: System, shared_amqp_url: str
) -> None:
    client = f"bench-{uuid4().hex[:8]}"
    process = await start(
        *("bench", await base_url(services["gateway"]), "--only", "http", "--json"),
        *("--rate", "50", "--count", "100000"),
        amqp_url=shared_amqp_url,
        RINGBACK_TICKET=ticket(client),
    )
    own = call.as_client(client)

    async def measuring() -> bool:
        items = (await own("GET", "/v1/callbacks?status=notified&limit=50")).json["items"]
        return len(items) > 10

    await until(measuring, 60)
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1, err
    seen = json.loads(out)
    assert seen["received"] > 0
    assert 0 < seen["accepted"] < seen["callbacks"]
    assert b"Interrupted." in err
    assert b"Traceback" not in err
