"""N14: spans say what happened and no more, form one trace, and cost nothing while off."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from services.callback import spans as attempts
from services.delivery import spans as deliveries
from shared.amqp import spans
from shared.amqp.codec import Properties
from shared.amqp.message import Dead, Deferred, DispatchFailed, Done, Message, Outcome, Retried
from shared.amqp.publisher import OutgoingMessage, PublishRefusedError
from shared.amqp.rpc import RequestContext
from shared.contracts.callback import SendCallback
from shared.contracts.requests import Failure, FailureCode
from shared.errors import ContractViolationError, TransientError
from shared.http.client import HttpResponse, RequestFailedError
from shared.http.guard import parse_target
from shared.http.tracing import traced as traced_requests
from shared.http.tracing import traceparent_of
from shared.topology import CALLBACKS, SCHEDULER_OUTCOMES, TIERS

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="needs the extra otel")
pytest.importorskip("shared.tracing.export", reason="needs the extra otel")
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)

from shared.tracing.spans import Tracer  # noqa: E402

TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = f"00-{TRACE}-b7ad6b7169203331-01"
UNSAMPLED = f"00-{TRACE}-b7ad6b7169203331-00"
CANARY = "c4n4ry"


class Traced:
    """A tracer, and the spans that have ended."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = sdk.TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = Tracer(provider)

    @property
    def spans(self) -> list[Any]:
        return list(self.exporter.get_finished_spans())

    def only(self) -> Any:
        [span] = self.spans
        return span


@pytest.fixture
def traced() -> Traced:
    return Traced()


def delivered(traceparent: str | None = SAMPLED, **headers: Any) -> Message:
    if traceparent is not None:
        headers["traceparent"] = traceparent
    return Message("id-1", Properties(headers=headers or None, message_id="m-1"), b"body", 2)


def outgoing(**headers: Any) -> OutgoingMessage:
    return OutgoingMessage(CALLBACKS, Properties(headers=headers, message_id="m-1"), b"body")


class Broker:
    """Keeps what is sent, and confirms nothing by itself."""

    def __init__(self) -> None:
        self.sent: list[OutgoingMessage] = []
        self.confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(self, message: OutgoingMessage) -> asyncio.Future[None]:
        self.sent.append(message)
        return self.confirmed


def context_of(span: Any) -> str:
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}"


def is_sampled(traceparent: str) -> bool:
    return bool(int(traceparent[-2:], 16) & 1)


async def test_n14_a_publish_is_a_span_up_to_its_confirm_and_the_message_carries_it(
    traced: Traced,
) -> None:
    broker, message = Broker(), outgoing(traceparent=SAMPLED, **{"x-ringback-id": "id-1"})
    confirmed = spans.publish(traced.tracer, message, broker.send)
    assert traced.spans == []
    broker.confirmed.set_result(None)
    await confirmed
    await asyncio.sleep(0)  # the span ends in a callback of the future
    span = traced.only()
    assert (span.name, span.kind.name) == ("publish callbacks", "PRODUCER")
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == SAMPLED[3:-3]
    assert span.attributes["ringback.id"] == "id-1"
    [sent] = broker.sent
    assert sent.properties.headers is not None
    assert sent.properties.headers["traceparent"].startswith(context_of(span))
    assert message.properties.headers == {"traceparent": SAMPLED, "x-ringback-id": "id-1"}


async def test_n14_a_refused_publish_is_a_failed_span(traced: Traced) -> None:
    broker = Broker()
    confirmed = spans.publish(traced.tracer, outgoing(traceparent=SAMPLED), broker.send)
    broker.confirmed.set_exception(PublishRefusedError("an alarm is on"))
    with pytest.raises(PublishRefusedError):
        await confirmed
    await asyncio.sleep(0)
    span = traced.only()
    assert span.attributes["error.type"] == "PublishRefusedError"
    assert (span.status.status_code.name, span.status.description) == ("ERROR", "an alarm is on")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": UNSAMPLED},
        {"traceparent": "nonsense"},
        {"traceparent": SAMPLED, "x-ringback-step": 1},  # a copy in a tier
        {"traceparent": SAMPLED, "x-ringback-letter": "l-1"},  # a dead letter
    ],
    ids=["no trace", "not sampled", "not valid", "a copy", "a dead letter"],
)
async def test_n14_other_messages_are_published_unchanged_and_without_a_span(
    traced: Traced, headers: dict[str, Any]
) -> None:
    broker, message = Broker(), outgoing(**headers)
    broker.confirmed.set_result(None)
    await spans.publish(traced.tracer, message, broker.send)
    assert broker.sent == [message]
    assert traced.spans == []


TIER = TIERS[0]
FAILED = TransientError("HTTP status 500")


@pytest.mark.parametrize(
    ("outcome", "attributes", "error"),
    [
        (Done(None), {"ringback.outcome": "done"}, None),
        (
            Retried(TIER, 0.0, FAILED),
            {"ringback.outcome": "retried", "ringback.tier": TIER.name},
            "TransientError",
        ),
        (
            Deferred(TIER, "the lane is full"),
            {"ringback.outcome": "deferred", "ringback.tier": TIER.name},
            None,
        ),
        (
            Dead("no field", ContractViolationError("no field")),
            {"ringback.outcome": "dead"},
            "ContractViolationError",
        ),
        (
            DispatchFailed("gone", FAILED),
            {"ringback.outcome": "dispatch_failed"},
            "TransientError",
        ),
        (None, {}, None),
    ],
)
def test_n14_the_span_of_a_delivery_says_what_became_of_it(
    traced: Traced, outcome: Outcome[Any] | None, attributes: dict[str, Any], error: str | None
) -> None:
    span = spans.process(traced.tracer, CALLBACKS, delivered())
    assert span is not None
    spans.end(span, outcome)
    ended = traced.only()
    assert (ended.name, ended.kind.name) == ("process callbacks", "CONSUMER")
    assert ended.attributes["ringback.attempt"] == 2
    named = {key: ended.attributes.get(key) for key in ("ringback.outcome", "ringback.tier")}
    assert {key: value for key, value in named.items() if value is not None} == attributes
    assert ended.attributes.get("error.type") == error
    assert ended.status.status_code.name == ("UNSET" if error is None else "ERROR")


def test_n14_all_attempts_have_the_parent_that_the_sender_gave(traced: Traced) -> None:
    message = delivered()
    message.span = spans.process(traced.tracer, CALLBACKS, message)
    assert message.span is not None
    # What follows from the attempt is below it, but the copy of the message is not.
    assert message.traceparent == message.span.traceparent != SAMPLED
    copy = message.copy_properties({}, message_id="m-2")
    assert copy.headers is not None
    assert copy.headers["traceparent"] == SAMPLED
    assert message.trace_id == TRACE


def test_n14_a_message_without_a_trace_begins_one_that_its_copies_carry(traced: Traced) -> None:
    message = delivered(None)
    message.span = spans.process(traced.tracer, CALLBACKS, message)
    assert message.span is not None
    copy = message.copy_properties({}, message_id="m-2")
    assert copy.headers is not None
    assert copy.headers["traceparent"] == message.span.traceparent
    message.span.end()
    assert traced.only().parent is None


def test_n14_no_span_without_the_callers_flag_and_no_trace_begins_with_a_fact(
    traced: Traced,
) -> None:
    unsampled = delivered(UNSAMPLED)
    assert spans.process(traced.tracer, CALLBACKS, unsampled) is None
    assert unsampled.traceparent == UNSAMPLED
    assert spans.process(traced.tracer, SCHEDULER_OUTCOMES, delivered(None)) is None


def test_n14_the_sampler_of_the_operator_decides_for_a_new_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    traced, message = Traced(), delivered(None)
    span = message.span = spans.process(traced.tracer, CALLBACKS, message)
    assert span is not None
    copy = message.copy_properties({}, message_id="m-2")
    spans.end(span, Done(None))
    # Every later attempt and the receiver see the decision.
    assert copy.headers is not None
    assert not is_sampled(copy.headers["traceparent"])
    assert traced.spans == []


def requested(headers: dict[str, str]) -> web.Request:
    """Return a request for a route of an HTTP service."""
    request = make_mocked_request("GET", "/v1/things/7?token=secret", headers=headers)
    route = web.Application().router.add_get("/v1/things/{id}", responding)
    request._match_info = web.UrlMappingMatchInfo({}, route)  # noqa: SLF001 - as the router does
    return request


async def responding(request: web.Request) -> web.StreamResponse:
    return web.Response(text=traceparent_of(request))


async def context_after(traced: Traced, request: web.Request, *, trusted: bool) -> str | None:
    """Handle a request, and return the trace context of what follows from it."""

    @web.middleware
    async def inner(request: web.Request, handler: Any) -> Any:
        return await handler(request)

    outer = traced_requests(inner, traced.tracer, trusted=trusted, quiet=())
    response = await outer(request, responding)
    assert isinstance(response, web.Response)
    return response.text


async def test_n14_a_request_continues_the_trace_of_a_trusted_caller(traced: Traced) -> None:
    context = await context_after(traced, requested({"traceparent": SAMPLED}), trusted=True)
    span = traced.only()
    assert span.name == "GET /v1/things/{id}"
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.links == ()
    assert context is not None
    assert context.startswith(context_of(span))


async def test_n14_a_request_of_a_stranger_begins_a_trace_with_a_link(traced: Traced) -> None:
    context = await context_after(traced, requested({"traceparent": UNSAMPLED}), trusted=False)
    span = traced.only()
    [link] = span.links
    assert span.parent is None
    assert f"{link.context.trace_id:032x}" == TRACE != f"{span.context.trace_id:032x}"
    assert context is not None
    assert context.startswith(context_of(span))
    assert is_sampled(context)


@pytest.mark.parametrize("headers", [{"traceparent": SAMPLED}, {"traceparent": "x"}, {}])
async def test_n14_the_sampler_of_the_operator_decides_for_strangers(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    traced = Traced()
    context = await context_after(traced, requested(headers), trusted=False)
    assert context is not None
    assert not is_sampled(context)
    assert TRACE not in context
    assert traced.spans == []


def test_n14_a_disabled_library_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    message = delivered(None)
    assert spans.process(Traced().tracer, CALLBACKS, message) is None
    assert message.properties.headers is None


@pytest.mark.parametrize(
    ("response", "outcome", "status"),
    [
        ({"status": "scheduled"}, None, "UNSET"),
        (Failure(code=FailureCode.NOT_FOUND, detail=CANARY), "not_found", "UNSET"),
        (Failure(code=FailureCode.UNAVAILABLE, detail=CANARY), "unavailable", "ERROR"),
    ],
)
async def test_n14_a_request_is_a_span_of_the_client_and_one_of_the_server(
    traced: Traced, response: Any, outcome: str | None, status: str
) -> None:
    async def handle(_: RequestContext) -> Any:
        return response

    async def send(context: RequestContext) -> Any:
        return await spans.respond(traced.tracer, "scheduler.requests", "Get", context, handle)

    context = RequestContext("client", SAMPLED)
    result = await spans.request(traced.tracer, "scheduler.requests", "Get", context, send)
    assert result is response
    server, client = traced.spans
    assert (client.kind.name, server.kind.name) == ("CLIENT", "SERVER")
    assert server.parent.span_id == client.context.span_id
    for span in (client, server):
        assert span.attributes.get("ringback.outcome") == outcome
        assert span.status.status_code.name == status
        assert CANARY not in span.to_json()


async def test_n14_no_trace_begins_with_a_request(traced: Traced) -> None:
    async def handle(context: RequestContext) -> None:
        assert context == RequestContext()

    await spans.request(traced.tracer, "q", "Ping", RequestContext(), handle)
    await spans.respond(traced.tracer, "q", "Ping", RequestContext(), handle)
    assert traced.spans == []


async def test_n14_an_unexpected_error_is_a_failed_span_without_its_text(traced: Traced) -> None:
    async def handle(_: RequestContext) -> None:
        raise ZeroDivisionError(CANARY)

    with pytest.raises(ZeroDivisionError):
        await spans.respond(traced.tracer, "q", "Get", RequestContext(None, SAMPLED), handle)
    assert traced.only().attributes["error.type"] == "ZeroDivisionError"
    assert CANARY not in traced.only().to_json()


COMMAND = SendCallback(
    target_url=f"https://example.com/{CANARY}?token={CANARY}",
    hmac_secret=CANARY,
    headers={"Authorization": CANARY},
    payload={"a": CANARY},
    client_id="shop",
)


def attempt(traced: Traced) -> Any:
    message = delivered()
    message.span = spans.process(traced.tracer, CALLBACKS, message)
    span = attempts.attempt(message, COMMAND, parse_target(COMMAND.target_url))
    assert span is not None
    return span


@pytest.mark.parametrize(("status", "error"), [(204, None), (302, "302"), (500, "500")])
async def test_n14_the_span_of_an_attempt_has_its_status_but_no_path_query_or_secret(
    traced: Traced, status: int, error: str | None
) -> None:
    async def respond() -> HttpResponse:
        return HttpResponse(status, None, CANARY.encode())

    await attempts.observed(attempt(traced), respond())
    span = traced.only()
    assert (span.name, span.kind.name) == ("POST", "CLIENT")
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.request.resend_count": 1,
        "http.response.status_code": status,
        "url.full": "https://example.com:443",
        "server.address": "example.com",
        "server.port": 443,
        "ringback.id": "id-1",
        "ringback.attempt": 2,
        "ringback.client_id": "shop",
    } | ({} if error is None else {"error.type": error})
    assert CANARY not in span.to_json()


def test_n14_the_text_of_an_error_never_costs_other_spans(traced: Traced) -> None:
    span = traced.tracer.start("POST", "client", {}, parent=SAMPLED)
    assert span is not None
    with span:
        span.fail("refused", "\ud800" + "x" * 5000)
    assert traced.only().status.description == "?" + "x" * 999
    assert encode_spans(traced.spans).SerializeToString()


async def test_n14_an_attempt_without_a_response_has_the_reason(traced: Traced) -> None:
    async def fail() -> HttpResponse:
        raise RequestFailedError("timeout", "no response within 5 s")

    with pytest.raises(RequestFailedError):
        await attempts.observed(attempt(traced), fail())
    assert traced.only().attributes["error.type"] == "timeout"
    assert traced.only().status.description == "timeout: no response within 5 s"


async def test_n14_the_span_of_a_message_names_the_provider_and_not_the_recipient(
    traced: Traced,
) -> None:
    async def send() -> int:
        return 250

    message = delivered()
    message.span = spans.process(traced.tracer, "messages.email", message)
    assert await deliveries.observed(message, "email", "smtp://mail.example.com:25", send()) == 250
    span = traced.only()
    assert (span.name, span.kind.name) == ("send email", "CLIENT")
    assert dict(span.attributes) == {
        "server.address": "mail.example.com",
        "server.port": 25,
        "ringback.id": "id-1",
        "ringback.channel": "email",
        "ringback.attempt": 2,
        "ringback.status": 250,
    }


def test_n14_the_description_of_a_failure_is_short_and_valid_text(traced: Traced) -> None:
    span = traced.tracer.start("work", "server", {}, parent=SAMPLED)
    assert span is not None
    with span:
        span.fail("failed", "\ud800" + "x" * 100_000)
    assert traced.only().status.description == "?" + "x" * 999
