"""The HTTP API of callbacks: its responses, and the requests that the scheduler gets."""

import json
from typing import Any

import pytest

from services.gateway.routes import all_routes
from tests.fakes.gateway import CALLBACK, Caller
from tests.fakes.scheduler import FakeScheduler

KEYED = CALLBACK | {"group_key": "user-7", "event_key": "reminder/1 ü"}
UNKNOWN = "00000000-0000-4000-8000-000000000000"
GET_PATHS = [route.path for route in all_routes("https://example.com") if route.method == "GET"]


@pytest.mark.parametrize("path", ["/v1/callbacks", "/v1/add"])
async def test_s1_a_created_callback_is_found(
    call: Caller, scheduler: FakeScheduler, path: str
) -> None:
    created = await call("POST", path, CALLBACK)
    assert created.status == 201
    assert created.json.keys() == {"id", "status", "run_at"}
    assert created.headers["Location"] == f"/v1/callbacks/{created.json['id']}"
    assert created.headers["Cache-Control"] == "no-store"
    assert scheduler.requests[-1] == (
        "CreateCallback",
        None,
        {"callback": CALLBACK, "idempotency_key": None},
    )
    found = await call("GET", created.headers["Location"])
    assert found.status == 200
    assert found.json["id"] == created.json["id"]


async def test_the_body_reaches_the_scheduler_unchanged(
    call: Caller, scheduler: FakeScheduler
) -> None:
    context = {"text": 'ü \u2028 \\ " }, {', "number": 1.50, "big": 2**70, "none": None}
    raw = ' {"url" : "https://example.com", "context":' + json.dumps(context) + "}\n"
    assert (await call("POST", "/v1/callbacks", raw=raw)).status == 201
    assert scheduler.requests[-1][2]["callback"]["context"] == context
    message = scheduler.messages[-1]
    assert raw.encode() in message.body
    assert message.content_type == "application/json"
    # The request carries its timeout, so an abandoned request is dropped.
    assert message.expiration is not None


async def test_the_idempotency_key_is_passed_on_and_a_repeat_gets_the_same_response(
    call: Caller, scheduler: FakeScheduler
) -> None:
    first = await call("POST", "/v1/callbacks", CALLBACK, Idempotency_Key="order-7")
    repeated = await call("POST", "/v1/callbacks", CALLBACK, Idempotency_Key="order-7")
    assert (first.status, repeated.status) == (201, 201)
    assert first.json == repeated.json
    assert scheduler.requests[-1][2]["idempotency_key"] == "order-7"
    for invalid in ("", "x" * 256, "two words"):
        rejected = await call("POST", "/v1/callbacks", CALLBACK, Idempotency_Key=invalid)
        assert rejected.rejected_fields() == {"Idempotency-Key"}
    for body in ([CALLBACK], {"callbacks": [CALLBACK]}):
        await call("POST", "/v1/callbacks/batch", body, Idempotency_Key="order-7")
        sent = {"callbacks": [CALLBACK], "idempotency_key": "order-7"}
        assert scheduler.requests[-1][2] == sent
    inside = await call("POST", "/v1/callbacks/batch", sent)
    assert inside.rejected_fields() == {"idempotency_key"}


async def test_a_batch_with_many_unknown_fields_is_rejected_by_the_gateway(
    call: Caller, scheduler: FakeScheduler
) -> None:
    """Validation of 8 MB of them would take half a second of the scheduler's CPU."""
    body = {"callbacks": [CALLBACK]} | {f"field-{number}": None for number in range(100_000)}
    before = len(scheduler.requests)
    (await call("POST", "/v1/callbacks/batch", body)).problem(422)
    assert [name for name, *_ in scheduler.requests[before:] if name != "Ping"] == []


@pytest.mark.parametrize("form", ["list", "object"])
async def test_a_batch_has_a_result_for_each_callback(
    call: Caller, scheduler: FakeScheduler, form: str
) -> None:
    body: Any = [CALLBACK, KEYED]
    response = await call(
        "POST", "/v1/callbacks/batch", body if form == "list" else {"callbacks": body}
    )
    assert response.status == 200
    assert [item["status"] for item in response.json["items"]] == ["scheduled", "scheduled"]
    assert scheduler.requests[-1] == ("CreateCallbacks", None, {"callbacks": body})


async def test_finding_a18_a_rejected_callback_of_a_batch_is_a_problem(
    call: Caller, scheduler: FakeScheduler
) -> None:
    errors = [{"field": "url", "message": "Field required"}]
    failure = {"code": "invalid", "detail": "url: Field required", "errors": errors}
    scheduler.responses["CreateCallbacks"] = lambda _: {"ok": {"items": [{"error": failure}]}}
    (item,) = (await call("POST", "/v1/callbacks/batch", [CALLBACK])).json["items"]
    assert item["error"] == {
        "type": "urn:ringback:problem:invalid",
        "title": "Unprocessable Entity",
        "status": 422,
        "detail": "url: Field required",
        "errors": errors,
    }


async def test_s2_a_list_passes_every_parameter_on(call: Caller, scheduler: FakeScheduler) -> None:
    caller = call.as_client("lister")
    await caller("POST", "/v1/callbacks", KEYED)
    page = await caller(
        "GET", "/v1/callbacks?group_key=user-7&status=scheduled&limit=1000&cursor=c"
    )
    assert page.status == 200
    assert page.json["next_cursor"] is None
    assert [item["group_key"] for item in page.json["items"]] == ["user-7"]
    assert scheduler.requests[-1][2] == {
        "group_key": "user-7",
        "status": "scheduled",
        "limit": 1000,
        "cursor": "c",
    }
    of_group = await caller("GET", "/v1/groups/user-7/callbacks?limit=5")
    assert of_group.json == page.json
    assert scheduler.requests[-1][2] == {"group_key": "user-7", "limit": 5}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=many", "limit"),
        ("limit=", "limit"),
        ("limit=1e3", "limit"),
        ("limit=1&limit=2", "limit"),
        ("colour=red", "colour"),
        ("id=7", "id"),
    ],
)
async def test_an_invalid_query_parameter_is_named(call: Caller, query: str, field: str) -> None:
    assert (await call("GET", f"/v1/callbacks?{query}")).rejected_fields() == {field}


async def test_s10_every_invalid_query_parameter_is_named(call: Caller) -> None:
    rejected = await call("GET", "/v1/callbacks?limit=0&colour=red&status=lost&group_key=a")
    assert rejected.rejected_fields() == {"limit", "colour", "status"}
    rejected = await call("GET", "/v1/mailings/stats?limit=0&colour=red")
    assert rejected.rejected_fields() == {"limit", "colour"}


@pytest.mark.parametrize("path", GET_PATHS)
async def test_every_get_route_rejects_an_unknown_query_parameter(call: Caller, path: str) -> None:
    path = path.format(
        id=UNKNOWN,
        group_key="user-7",
        event_key="reminder-1",
        queue="callbacks",
        letter_id="1",
    )
    response = await call("GET", f"{path}?colour=red")
    if path == "/events/stream":
        assert (response.status, response.json["code"]) == (422, -3)
        assert "colour: " in response.json["description"]
    else:
        assert response.rejected_fields() == {"colour"}


async def test_a_request_with_a_body_may_have_a_query(call: Caller) -> None:
    created = await call("POST", "/v1/callbacks?colour=red", CALLBACK)
    assert created.status == 201
    path = f"/v1/callbacks/{created.json['id']}?colour=red"
    assert (await call("PATCH", path, {"delay": 60})).status == 200


async def test_s8_a_callback_is_rescheduled_and_cancelled_by_id(
    call: Caller, scheduler: FakeScheduler
) -> None:
    created = (await call("POST", "/v1/callbacks", CALLBACK)).json
    path = f"/v1/callbacks/{created['id']}"
    rescheduled = await call("PATCH", path, {"run_at": "2031-01-01T00:00:00Z"})
    assert rescheduled.status == 200
    assert rescheduled.json["result"] == "rescheduled"
    assert scheduler.requests[-1][2] == {"id": created["id"], "run_at": "2031-01-01T00:00:00Z"}
    await call("PATCH", path, {"delay": 60})
    assert scheduler.requests[-1] == (
        "RescheduleCallback",
        None,
        {"id": created["id"], "delay": 60},
    )
    cancelled = await call("DELETE", path)
    assert (cancelled.status, cancelled.json["result"]) == (200, "cancelled")


async def test_s8_keys_may_contain_slashes_and_umlauts(
    call: Caller, scheduler: FakeScheduler
) -> None:
    caller = call.as_client("keys")
    await caller("POST", "/v1/callbacks", KEYED)
    path = "/v1/groups/user-7/callbacks/reminder%2F1%20%C3%BC"
    keys = {"group_key": "user-7", "event_key": "reminder/1 ü"}
    assert (await caller("GET", path)).json["event_key"] == "reminder/1 ü"
    assert scheduler.requests[-1] == ("GetCallback", "keys", keys)
    assert (await caller("PATCH", path, {"delay": 5})).status == 200
    assert scheduler.requests[-1] == ("RescheduleCallback", "keys", keys | {"delay": 5})
    assert (await caller("DELETE", path)).json["result"] == "cancelled"
    assert scheduler.requests[-1] == ("CancelCallbacks", "keys", keys)


async def test_put_by_keys_is_201_if_new_and_200_if_replaced(
    call: Caller, scheduler: FakeScheduler
) -> None:
    path, body = "/v1/groups/user-7/callbacks/reminder%2F1", {"url": CALLBACK["url"], "delay": 5}
    keys = {"group_key": "user-7", "event_key": "reminder/1"}
    put = {"id": UNKNOWN, "status": "scheduled", "run_at": CALLBACK["run_at"]}
    scheduler.responses["PutCallback"] = lambda _: {"ok": put | {"created": True}}
    created = await call("PUT", path, body)
    assert (created.status, created.json) == (201, put)
    assert created.headers["Location"] == f"/v1/callbacks/{UNKNOWN}"
    assert scheduler.requests[-1] == ("PutCallback", None, {"callback": body | keys})
    scheduler.responses["PutCallback"] = lambda _: {"ok": put | {"created": False}}
    replaced = await call("PUT", path, body | keys, If_Match='"a", "b"')
    assert (replaced.status, replaced.json) == (200, put)
    sent = {"callback": body | keys, "if_match": ['"a"', '"b"']}
    assert scheduler.requests[-1] == ("PutCallback", None, sent)
    wrong = await call("PUT", path, body | {"event_key": "other"})
    assert wrong.rejected_fields() == {"event_key"}


async def test_put_with_if_none_match_only_creates(call: Caller, scheduler: FakeScheduler) -> None:
    path, body = "/v1/groups/g/callbacks/e", {"url": "https://example.com/hook", "delay": 60}
    put = {"id": UNKNOWN, "status": "scheduled", "run_at": CALLBACK["run_at"], "created": True}
    scheduler.responses["PutCallback"] = lambda _: {"ok": put}
    assert (await call("PUT", path, body, If_None_Match="*")).status == 201
    assert scheduler.requests[-1][2]["create_only"] is True
    rejected = await call("PUT", path, body, If_None_Match='"a"')
    assert rejected.rejected_fields() == {"If-None-Match"}


async def test_a_get_with_a_current_etag_gets_304_without_a_body(
    call: Caller, scheduler: FakeScheduler
) -> None:
    scheduler.responses["GetCallback"] = lambda _: {"ok": {"id": UNKNOWN, "etag": '"a"'}}
    for path in (f"/v1/callbacks/{UNKNOWN}", "/v1/groups/g/callbacks/e"):
        for current in ('"a"', 'W/"a"', '"x", "a"', "*"):
            response = await call("GET", path, If_None_Match=current)
            assert (response.status, response.text) == (304, "")
            assert response.headers["ETag"] == '"a"'
        assert (await call("GET", path, If_None_Match='"x"')).status == 200
        wrong = await call("GET", path, If_None_Match="a")
        assert wrong.rejected_fields() == {"If-None-Match"}


async def test_if_match_is_passed_on_and_an_etag_is_returned(
    call: Caller, scheduler: FakeScheduler
) -> None:
    path = f"/v1/callbacks/{UNKNOWN}"
    scheduler.responses["GetCallback"] = lambda _: {"ok": {"id": UNKNOWN, "etag": '"a"'}}
    assert (await call("GET", path)).headers["ETag"] == '"a"'
    changed = {"error": {"code": "precondition_failed", "detail": "changed"}}
    requests: list[tuple[str, str, str, Any]] = [
        ("RescheduleCallback", "PATCH", path, {"delay": 1}),
        ("CancelCallbacks", "DELETE", path, None),
        ("RunCallback", "POST", f"{path}/run", None),
    ]
    for operation, method, url, body in requests:
        scheduler.responses[operation] = lambda _: changed
        response = await call(method, url, body, If_Match='"a"')
        problem = response.problem(412)
        assert problem["type"] == "urn:ringback:problem:precondition_failed"
        sent = {"id": UNKNOWN, "if_match": ['"a"']} | (body or {})
        assert scheduler.requests[-1] == (operation, None, sent)
        for invalid in ("", "a", '"a" "b"', '*, "a"'):
            wrong = await call(method, url, body, If_Match=invalid)
            assert wrong.rejected_fields() == {"If-Match"}
    inside = await call("PATCH", path, {"delay": 1, "if_match": ["x"]})
    assert inside.rejected_fields() == {"if_match"}


async def test_s8_a_group_is_cancelled(call: Caller, scheduler: FakeScheduler) -> None:
    caller = call.as_client("groups")
    for number in range(3):
        await caller(
            "POST", "/v1/callbacks", CALLBACK | {"group_key": "g", "event_key": f"{number}"}
        )
    response = await caller("DELETE", "/v1/groups/g/callbacks")
    assert response.status == 200
    assert response.json["counts"] == {"cancelled": 3}
    assert scheduler.requests[-1] == ("CancelCallbacks", "groups", {"group_key": "g"})


@pytest.mark.parametrize("result", ["in_flight", "already_notified", "already_failed"])
async def test_s8_a_cancel_or_reschedule_after_the_dispatch_has_its_result(
    call: Caller, scheduler: FakeScheduler, result: str
) -> None:
    result_body = {"ok": {"id": "x", "result": result}}
    scheduler.responses = dict.fromkeys(
        ("CancelCallbacks", "RescheduleCallback"), lambda _: result_body
    )
    for response in (
        await call("DELETE", f"/v1/callbacks/{UNKNOWN}"),
        await call("PATCH", f"/v1/callbacks/{UNKNOWN}", {"delay": 1}),
    ):
        assert (response.status, response.json["result"]) == (200, result)


async def test_s8_not_found_is_404_as_a_result_and_as_a_failure(
    call: Caller, scheduler: FakeScheduler
) -> None:
    scheduler.responses["CancelCallbacks"] = lambda _: {"ok": {"id": "x", "result": "not_found"}}
    assert (await call("DELETE", f"/v1/callbacks/{UNKNOWN}")).problem(404)["result"] == "not_found"
    for id_ in (UNKNOWN, "7"):
        for method, body in (("GET", None), ("PATCH", {"delay": 1}), ("DELETE", None)):
            response = await call(method, f"/v1/callbacks/{id_}", body)
            assert response.problem(404)["result"] == "not_found"  # finding A18


async def test_an_invalid_id_is_not_found_without_a_request_to_the_scheduler(
    call: Caller, scheduler: FakeScheduler
) -> None:
    before = len(scheduler.requests)
    for invalid in ("7", "x" * 5000, "%00", "{00000000-0000-4000-8000-00000000000}"):
        (await call("GET", f"/v1/callbacks/{invalid}")).problem(404)
    assert len(scheduler.requests) == before


async def test_a_patch_may_not_name_a_callback_in_its_body(call: Caller) -> None:
    wrong = await call(
        "PATCH", f"/v1/callbacks/{UNKNOWN}", {"delay": 1, "id": "y", "group_key": "g"}
    )
    assert wrong.rejected_fields() == {"id", "group_key"}
    assert (await call("PATCH", f"/v1/callbacks/{UNKNOWN}", [1])).rejected_fields() == {""}


async def test_a_retry_is_passed_on(call: Caller, scheduler: FakeScheduler) -> None:
    body = {"group_key": "g", "dry_run": True}
    response = await call("POST", "/v1/callbacks/retry", body)
    assert (response.status, response.json["count"]) == (200, len(response.json["ids"]))
    assert scheduler.requests[-1] == ("RetryCallbacks", None, body)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("invalid", 422),
        ("conflict", 409),
        ("not_found", 404),
        ("forbidden", 403),
        ("unavailable", 503),
        ("unknown", 504),
        ("internal", 500),
    ],
)
async def test_s10_each_failure_of_the_scheduler_has_its_problem(
    call: Caller, scheduler: FakeScheduler, code: str, status: int
) -> None:
    errors = [{"field": "retry_params.base_delay", "message": "Field required"}]
    error = {"code": code, "detail": "the detail", "errors": errors}
    scheduler.responses["CreateCallback"] = lambda _: {"error": error}
    response = await call("POST", "/v1/callbacks", CALLBACK)
    problem = response.problem(status)
    assert problem["detail"].startswith("the detail")
    kind = "no_answer" if code == "unknown" else code
    assert problem["type"] == f"urn:ringback:problem:{kind}"
    assert ("Retry-After" in response.headers) == (status == 503)
    assert problem.get("errors", errors) == errors
