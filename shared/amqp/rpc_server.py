"""Handles the requests in one queue and responds to them.

The broker delivers a request again if the service dies before it responds, so handlers are
idempotent.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

from prometheus_client import Counter
from pydantic_core import PydanticSerializationError, to_json

from shared.amqp import codec, spans
from shared.amqp.codec import Properties
from shared.amqp.connection import BrokerConnection, keep_connected
from shared.amqp.consumer import BUGS
from shared.amqp.declare import declare
from shared.amqp.delivery_tasks import DeliveryTasks
from shared.amqp.frame_interceptor import Delivery, InterceptedChannel
from shared.amqp.rpc import JSON, REPLY_TO, RequestContext, failure_of, request_timeout
from shared.amqp.subscription import subscribe
from shared.contracts import headers
from shared.contracts.requests import Failure, FailureCode
from shared.errors import ContractViolationError, InfrastructureError
from shared.process.health import Health
from shared.topology import Topology
from shared.tracing import active

logger = logging.getLogger(__name__)

REQUESTS: Final = Counter(
    "ringback_requests_answered", "Handled requests by outcome.", ["queue", "operation", "outcome"]
)

PART: Final = "requests"
# Bytes of a response. RabbitMQ 4 closes the channel over a message of more than 16 MiB.
MAX_RESPONSE_BYTES: Final = 8 << 20
# The label of operations without a handler: their names come from outside.
UNKNOWN: Final = "unknown"

Handler = Callable[[RequestContext, bytes], Awaitable[Any]]


class RpcServer:
    """Responds to the requests of one queue, on a connection that `run` keeps open.

    `handlers` are called by operation, with the request's context and body, and return a value or a
    `Failure`. At most `prefetch` run at a time. An InfrastructureError becomes the failure
    `unavailable` or `unknown`, any other error `internal`. A handler is cancelled at the request's
    timeout.
    """

    def __init__(  # noqa: PLR0913 - the composition root passes each collaborator by name
        self,
        queue: str,
        handlers: Mapping[str, Handler],
        *,
        url: str,
        name: str,
        topology: Topology,
        prefetch: int,
        health: Health,
    ) -> None:
        self._queue = queue
        self._handlers = handlers
        self._keep_connected = partial(keep_connected, url, name=name, part=PART, health=health)
        self._topology = topology
        self._prefetch = prefetch
        self._health = health
        health.expect(PART)
        self._tasks = DeliveryTasks()
        self._bugs = BUGS.labels(queue)
        self._outcomes: dict[tuple[str, str], Counter] = {}

    async def run(self) -> None:
        """Handle requests until cancelled.

        Raises:
            TopologyMismatchError: the broker's queues differ from `topology`.
        """
        await self._keep_connected(session=self._serve)

    async def drain(self, grace: float) -> None:
        """Stop consuming, and respond to requests in progress for `grace` seconds.

        The broker delivers the others again.
        """
        await self._tasks.stop()
        await self._tasks.finish(grace)

    async def _serve(self, broker: BrokerConnection) -> None:
        if self._tasks.draining:
            return
        await declare(broker.connection, self._topology)
        subscription = await subscribe(broker, self._queue)
        channel = subscription.intercepted

        def ended(tag: int, error: BaseException | None) -> None:
            if error is not None:
                logger.critical("bug in the RPC server", exc_info=error)
                channel.write(codec.encode_ack(channel.number, tag, multiple=False))

        await self._tasks.consume(
            subscription,
            partial(self._process, channel),
            started=partial(self._health.up, PART),
            ended=ended,
            prefetch=self._prefetch,
        )

    async def _process(self, channel: InterceptedChannel, delivery: Delivery) -> None:
        """Respond to one request, and acknowledge it in the same write.

        The ack comes first. RabbitMQ closes the connection over a malformed reply_to, and would
        then deliver the request again, without end.
        """
        response = await self._respond(channel, delivery)
        ack = codec.encode_ack(channel.number, delivery.tag, multiple=False)
        channel.write(ack + response)

    async def _respond(self, channel: InterceptedChannel, delivery: Delivery) -> bytes:
        """Handle one request, and return the frames of the response, if any."""
        try:
            request = codec.decode_properties(delivery.header)
        except ContractViolationError as error:
            logger.warning("request dropped: %s", error)
            return b""
        reply_to = request.reply_to or ""
        if not reply_to.startswith(REPLY_TO):  # otherwise a sender could make us write to any queue
            logger.warning("request dropped: its reply_to is not a direct reply-to")
            return b""
        operation = request.type if request.type in self._handlers else UNKNOWN
        try:
            async with asyncio.timeout(request_timeout(request)):
                value = await self._handle(request, delivery.body)
        except TimeoutError:
            self._count(operation, "late")
            return b""
        body, outcome = self._encode(value, request)
        self._count(operation, outcome)
        return codec.encode_publish(
            channel.number,
            "",
            reply_to,
            Properties(content_type=JSON, correlation_id=request.correlation_id),
            body,
            mandatory=False,  # the client may have disconnected
            frame_max=channel.frame_max,
        )

    async def _handle(self, request: Properties, body: bytes) -> Any:
        handler = self._handlers.get(request.type or "")
        if handler is None:  # from a newer version: a repeat can succeed after an upgrade
            return Failure(
                code=FailureCode.UNAVAILABLE, detail=f"unknown operation {request.type!r}"
            )
        given = request.headers or {}
        client_id = given.get(headers.CLIENT_ID)
        actor = given.get(headers.ACTOR, client_id)
        if not all(value is None or isinstance(value, str) for value in (client_id, actor)):
            return Failure(code=FailureCode.INVALID, detail="the client id is not a string")
        context = RequestContext(
            client_id,
            headers.traceparent(given),
            request.message_id,
            operator=given.get(headers.OPERATOR) == "1",
            actor=actor,
        )
        try:
            if active.tracer is None:
                return await handler(context, body)
            return await spans.respond(
                active.tracer,
                self._queue,
                request.type or UNKNOWN,
                context,
                lambda traced: handler(traced, body),
            )
        except InfrastructureError as error:
            return failure_of(error)
        except Exception as error:  # noqa: BLE001 - a bug in one handler must not stop the server
            return self._bug(error, request)

    def _encode(self, value: Any, request: Properties) -> tuple[bytes, str]:
        """Return the body of the response, and the label of its outcome."""
        if not isinstance(value, Failure):
            try:
                body = to_json({"ok": value})
            except (PydanticSerializationError, ValueError) as error:
                value = self._bug(error, request)
            else:
                if len(body) <= MAX_RESPONSE_BYTES:
                    return body, "ok"
                value = Failure(
                    code=FailureCode.INVALID,
                    detail=f"the response exceeds {MAX_RESPONSE_BYTES} bytes: request less",
                )
        body = to_json({"error": value})
        if len(body) > MAX_RESPONSE_BYTES:
            detail = f"the description of the error exceeds {MAX_RESPONSE_BYTES} bytes"
            body = to_json({"error": Failure(code=value.code, detail=detail)})
        return body, value.code

    def _bug(self, error: Exception, request: Properties) -> Failure:
        self._bugs.inc()
        logger.error("bug in a handler", extra={"operation": request.type}, exc_info=error)
        return Failure(code=FailureCode.INTERNAL, detail="internal error")

    def _count(self, operation: str | None, outcome: str) -> None:
        key = (operation or UNKNOWN, outcome)
        counter = self._outcomes.get(key)
        if counter is None:
            counter = self._outcomes[key] = REQUESTS.labels(self._queue, *key)
        counter.inc()
