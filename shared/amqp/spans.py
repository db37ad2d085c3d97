"""Spans of messages and of requests over AMQP, with the attributes of the messaging conventions.

The functions are called only while this process is traced.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from shared.amqp.message import OUTCOMES, Dead, Deferred, DispatchFailed, Retried
from shared.contracts import headers
from shared.contracts.requests import Failure, FailureCode
from shared.topology import OWNER_QUEUES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shared.amqp.message import Message, Outcome
    from shared.amqp.publisher import OutgoingMessage
    from shared.amqp.rpc import RequestContext
    from shared.tracing.spans import Attributes, Span, Tracer

# No trace begins with facts: they report what the spans of their cause already show.
_FACT_QUEUES: Final = frozenset(OWNER_QUEUES.values())
# Copies and dead letters keep the sender's trace context, so that all attempts are siblings.
_OF_COPIES: Final = (headers.STEP, headers.LETTER)
# The failures for which the caller is not responsible.
_ERRORS: Final = frozenset({FailureCode.INTERNAL, FailureCode.UNAVAILABLE, FailureCode.UNKNOWN})


def publish(
    tracer: Tracer,
    message: OutgoingMessage,
    send: Callable[[OutgoingMessage], asyncio.Future[None]],
) -> asyncio.Future[None]:
    """Send a message in a span from now to its confirm. The message carries the span's context."""
    own = message.properties.headers or {}
    parent = headers.traceparent(own)
    if parent is None or any(name in own for name in _OF_COPIES):
        return send(message)
    destination = message.exchange or message.routing_key
    span = tracer.start(
        f"publish {destination}",
        "producer",
        {
            **_messaging("publish", "send", destination),
            "messaging.rabbitmq.destination.routing_key": message.routing_key,
            "messaging.message.id": message.properties.message_id,
            "messaging.message.body.size": len(message.body),
            "ringback.id": own.get(headers.ID),
            "ringback.dispatch": own.get(headers.DISPATCH),
        },
        parent=parent,
    )
    if span is None:
        return send(message)
    own = {**own, headers.TRACEPARENT: span.traceparent}
    try:
        confirmed = send(replace(message, properties=replace(message.properties, headers=own)))
    except Exception as error:
        span.fail(type(error).__name__)
        span.end()
        raise
    confirmed.add_done_callback(partial(_confirmed, span))
    return confirmed


def _confirmed(span: Span, confirmed: asyncio.Future[None]) -> None:
    with span:
        if confirmed.cancelled():
            span.fail("cancelled")
        elif (error := confirmed.exception()) is not None:
            span.fail(type(error).__name__, str(error))


def process(tracer: Tracer, queue: str, message: Message) -> Span | None:
    """Start the span of a delivery. A message from outside without a trace begins one.

    Its copies then carry that trace, so that all attempts are in it.
    """
    properties = message.properties
    parent = message.traceparent
    span = tracer.start(
        f"process {queue}",
        "consumer",
        {
            **_messaging("process", "process", queue),
            "messaging.message.id": properties.message_id,
            "messaging.message.body.size": len(message.body),
            "ringback.id": message.id,
            "ringback.attempt": message.attempt,
        },
        parent=parent,
        begin=queue not in _FACT_QUEUES,
    )
    if span is not None and parent is None:
        properties.headers = {**(properties.headers or {}), headers.TRACEPARENT: span.traceparent}
    return span


def end(span: Span, outcome: Outcome[Any] | None) -> None:
    """End the span of a delivery. Without an outcome, the message returns to its queue."""
    with span:
        match outcome:
            case Retried(tier, _, error):
                span.set("ringback.tier", tier.name)
                span.fail(type(error).__name__, str(error))
            case Deferred(tier, _):
                span.set("ringback.tier", tier.name)
            case Dead(reason, error) | DispatchFailed(reason, error):
                span.fail(type(error).__name__, reason)
        if outcome is not None:
            span.set("ringback.outcome", OUTCOMES[type(outcome)])


async def request(
    tracer: Tracer,
    queue: str,
    operation: str,
    context: RequestContext,
    send: Callable[[RequestContext], Awaitable[Any]],
) -> Any:
    """Send a request in a span that ends with its response. No trace begins with a request."""
    span = tracer.start(
        operation, "client", _rpc("send", queue, operation), parent=context.traceparent
    )
    return await _within(span, context, send)


async def respond(
    tracer: Tracer,
    queue: str,
    operation: str,
    context: RequestContext,
    handle: Callable[[RequestContext], Awaitable[Any]],
) -> Any:
    """Handle a request in a span."""
    span = tracer.start(
        operation, "server", _rpc("process", queue, operation), parent=context.traceparent
    )
    return await _within(span, context, handle)


async def _within(
    span: Span | None,
    context: RequestContext,
    work: Callable[[RequestContext], Awaitable[Any]],
) -> Any:
    if span is None:
        return await work(context)
    with span:
        response = await work(context._replace(traceparent=span.traceparent))
        if isinstance(response, Failure):
            span.set("ringback.outcome", response.code.value)
            if response.code in _ERRORS:
                span.fail(response.code.value)
        return response


def _messaging(name: str, kind: str, destination: str) -> Attributes:
    return {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        "messaging.destination.name": destination,
    }


def _rpc(name: str, queue: str, operation: str) -> Attributes:
    return {**_messaging(name, name, queue), "rpc.method": operation}
