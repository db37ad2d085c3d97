"""The HTTP of the gateway: malformed, large and foreign requests are problems; logs and metrics."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.fakes.gateway import CALLBACK, Caller, gateway
from tests.fakes.scheduler import FakeScheduler
from tests.fakes.service import Service
from tests.fakes.waiting import until

MIB = 1_048_576


@pytest.fixture(scope="module")
def gateway_service(
    shared_amqp_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    settings = {"RINGBACK_GATEWAY_REQUEST_TIMEOUT": "2"}
    with gateway(tmp_path_factory.mktemp("gateway"), shared_amqp_url, settings) as service:
        yield service


async def test_no_response_in_time_is_504_with_an_unknown_outcome(
    call: Caller, scheduler: FakeScheduler
) -> None:
    scheduler.responses["CreateCallback"] = lambda _: None
    loop = asyncio.get_running_loop()
    started = loop.time()
    problem = (await call("POST", "/v1/callbacks", CALLBACK)).problem(504)
    assert 1.9 < loop.time() - started < 4
    assert "unknown" in problem["detail"]


DEEP = "[" * 10_000 + "]" * 10_000


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "{",
        '{"url": "x",}',
        '{"context": NaN}',
        '{"context": Infinity}',
        '{"context": "\\ud800"}',
        b'{"context": "\xff"}',
        '{"a": 1} {"b": 2}',
        f'{{"context": {DEEP}}}',
        '}, "idempotency_key": "x", "y": {',
    ],
    ids=range(10),
)
async def test_row_26_invalid_json_is_400_with_the_position(
    call: Caller, scheduler: FakeScheduler, raw: Any
) -> None:
    before = len(scheduler.requests)
    problem = (await call("POST", "/v1/callbacks", raw=raw)).problem(400)
    assert re.search(r"line \d+ column \d+", problem["detail"]), problem
    assert len(scheduler.requests) == before


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Type": "application/json", "Content_Encoding": "gzip"},
    ],
)
async def test_other_media_types_are_415(call: Caller, headers: dict[str, str]) -> None:
    (await call("POST", "/v1/callbacks", raw=json.dumps(CALLBACK), **headers)).problem(415)


@pytest.mark.parametrize("path", ["/v1/callbacks", "/v1/callbacks/batch", "/v1/mailings/stats"])
async def test_an_unknown_expectation_is_a_417_problem(call: Caller, path: str) -> None:
    body = json.dumps(CALLBACK)
    problem = (await call("POST", path, raw=body, Expect="200-ok")).problem(417)
    assert problem["detail"] == "Expect may only be 100-continue."


@pytest.mark.parametrize(
    ("method", "path", "header"),
    [
        ("POST", "/v1/callbacks", "Accept-Post"),
        ("PATCH", "/v1/groups/g/callbacks/e", "Accept-Patch"),
        ("PUT", "/v1/groups/g/callbacks/e", "Accept"),
    ],
)
async def test_a_415_names_the_accepted_type(
    call: Caller, method: str, path: str, header: str
) -> None:
    response = await call(method, path, raw="a=1", Content_Type="text/plain")
    response.problem(415)
    assert response.headers[header] == "application/json"


async def test_json_with_a_charset_is_accepted(call: Caller) -> None:
    raw = json.dumps(CALLBACK)
    kind = "application/json; charset=utf-8"
    assert (await call("POST", "/v1/callbacks", raw=raw, Content_Type=kind)).status == 201


@pytest.mark.parametrize("chunked", [False, True])
async def test_row_15_a_body_above_the_limit_is_413_without_a_request_to_the_scheduler(
    call: Caller, scheduler: FakeScheduler, *, chunked: bool
) -> None:
    before = len(scheduler.requests)
    large = json.dumps(CALLBACK | {"context": "x" * MIB})

    async def chunks() -> AsyncIterator[bytes]:
        yield large.encode()

    (await call("POST", "/v1/callbacks", raw=chunks() if chunked else large)).problem(413)
    batch = json.dumps([CALLBACK | {"context": "x" * MIB}] * 9)
    (await call("POST", "/v1/callbacks/batch", raw=batch)).problem(413)
    assert (await call("POST", "/v1/callbacks/batch", raw=f"[{large}]")).status == 200
    assert len(scheduler.requests) == before + 1


async def test_row_15_200_kb_of_headers_are_a_4xx_and_the_gateway_keeps_working(
    call: Caller,
) -> None:
    response = await call("GET", "/v1/callbacks", X_Large="h" * 200_000)
    assert 400 <= response.status < 500
    assert (await call("GET", "/v1/callbacks")).status == 200


async def test_unknown_paths_and_methods_are_problems(call: Caller) -> None:
    (await call("GET", "/v1/nothing")).problem(404)
    (await call("GET", "/")).problem(404)
    wrong = await call("PUT", "/v1/callbacks", CALLBACK)
    wrong.problem(405)
    assert set(wrong.headers["Allow"].split(",")) == {"GET", "HEAD", "POST"}


@pytest.mark.parametrize("name", ["batch", "retry"])
async def test_finding_d12_another_method_of_an_action_is_405(call: Caller, name: str) -> None:
    for method in ("GET", "PATCH", "DELETE"):
        wrong = await call(method, f"/v1/callbacks/{name}")
        wrong.problem(405)
        assert wrong.headers["Allow"] == "POST"


async def test_no_other_origin_is_allowed(call: Caller) -> None:
    preflight = await call(
        "OPTIONS",
        "/v1/callbacks",
        Origin="https://evil.example",
        Access_Control_Request_Method="POST",
    )
    assert preflight.status == 405
    response = await call("GET", "/v1/callbacks", Origin="https://evil.example")
    assert not [name for name in response.headers if name.lower().startswith("access-control")]


async def test_metrics_and_logs_show_requests_without_secrets(
    call: Caller, gateway_service: Service
) -> None:
    secret = CALLBACK | {"hmac_secret": "hmac-canary", "context": {"x": "context-canary"}}
    caller = call.as_client("logged")
    created = await caller(
        "POST",
        "/v1/callbacks",
        secret,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    await call("GET", "/v1/callbacks/token-canary/x", X_Service_Ticket="ticket-canary")
    [line] = await until(
        lambda: gateway_service.logged("http request", schedule_id=created.json["id"])
    )
    assert line["client_id"] == "logged"
    assert line["route"] == "/v1/callbacks"
    assert (line["method"], line["status"]) == ("POST", 201)
    assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert 0 < line["duration"] < 10
    assert "canary" not in gateway_service.output
    own = (await call("GET", "/metrics")).text
    sample = 'ringback_http_requests_total{method="POST",route="/v1/callbacks",status="201"}'
    assert sample in own
    assert 'route="unmatched"' in own
    assert "token-canary" not in own
    assert sample in (await gateway_service.get("/metrics"))[1]


# Anyone can send one: there is no ticket.
async def test_the_body_of_an_unsubscribe_request_is_bounded(
    call: Caller, scheduler: FakeScheduler
) -> None:
    before = len(scheduler.requests)
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    response = await call("POST", "/v1/unsubscribe?token=x", raw=b"a" * 5000, **form)
    response.problem(413)
    assert len(scheduler.requests) == before


async def test_readyz_reports_the_broker_and_the_scheduler(
    call: Caller, gateway_service: Service, scheduler: FakeScheduler
) -> None:
    assert (await call("GET", "/healthz")).status == 200
    report = (await call("GET", "/readyz")).json
    assert report["status"] == "ready"
    # Mailings and ingestion are not required.
    assert report["parts"] == {
        "broker": "ok",
        "publisher": "ok",
        "scheduler": "ok",
        "user events": "ok",
    }
    assert await gateway_service.parts() == report["parts"]
    scheduler.responses["Ping"] = lambda _: {"ok": {"status": "the database is unreachable"}}

    async def reported() -> bool:
        response = await call("GET", "/readyz")
        parts = response.json["parts"]
        return response.status == 503 and parts["scheduler"] == "the database is unreachable"

    await until(reported)


async def raw_exchange(port: int, data: bytes) -> bytes:
    """Send bytes on a new connection, and return the whole response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    async with asyncio.timeout(5):
        response = await reader.read()
    writer.close()
    return response


MALFORMED = {
    "nul": b"GET /v1/callbacks HTTP/1.1\r\nHost: x\r\nX: a\x00bearer-canary\r\n\r\n",
    "name": b"GET / HTTP/1.1\r\nHost: x\r\nbearer-canary (x): y\r\n\r\n",
    "line": b"bearer-canary\r\n\r\n",
    "chunk": b"POST /v1/callbacks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nbearer-canary\r\n\r\n",
    "length": b"POST /v1/callbacks HTTP/1.1\r\nHost: x\r\nContent-Length: bearer-canary\r\n\r\n",
}


@pytest.mark.parametrize("kind", MALFORMED)
async def test_finding_d6_malformed_http_is_neither_logged_nor_repeated(
    call: Caller, gateway_service: Service, kind: str
) -> None:
    api_port = int(gateway_service.logged("http on port")[-1]["port"])
    for port in (api_port, await gateway_service.port()):
        response = await raw_exchange(port, MALFORMED[kind])
        head, _, body = response.partition(b"\r\n\r\n")
        if port == api_port or kind != "chunk":  # the other port has no POST
            assert b" 400 " in head.split(b"\r\n")[0]
            assert b"application/problem+json" in head
            assert json.loads(body)["type"] == "urn:ringback:problem:malformed"
        assert b"canary" not in response
    assert (await call("GET", "/v1/callbacks")).status == 200
    assert "bearer-canary" not in gateway_service.output
    assert not [line for line in gateway_service.lines if line["level"] == "ERROR"]
