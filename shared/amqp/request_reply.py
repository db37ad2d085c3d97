"""Asks another service over RabbitMQ and waits for its answer (direct reply-to), and answers.

The forms of requests and answers are those of `shared/contracts/requests.py`. The asker sends a
request once, but the broker gives it out again when the answering service dies over it: handlers
must bear a repeat.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from itertools import count
from typing import Any, Final, NamedTuple

from prometheus_client import Counter
from pydantic_core import PydanticSerializationError, to_json

from shared.amqp import codec
from shared.amqp.codec import Properties
from shared.amqp.connection import BrokerConnection, keep_connected, wait_until_lost
from shared.amqp.consumer import BUGS
from shared.amqp.declare import declare
from shared.amqp.frame_interceptor import Delivery, InterceptedChannel
from shared.amqp.subscription import Subscription, never, subscribe
from shared.contracts import headers
from shared.contracts.requests import Failure, FailureCode
from shared.errors import ContractViolationError, InfrastructureError
from shared.process.health import Health
from shared.topology import Topology

logger = logging.getLogger(__name__)

REQUESTS: Final = Counter(
    "ringback_requests_answered",
    "Requests taken from a queue, by what became of them.",
    ["queue", "operation", "outcome"],
)

REPLY_TO: Final = "amq.rabbitmq.reply-to"
JSON: Final = "application/json"
# Requests in flight from one asker. Far more than a service answers within their patience: what
# comes on top would only wait in vain.
MAX_IN_FLIGHT: Final = 5_000
# Bytes of an answer. RabbitMQ 4 closes the channel over a message of more than 16 MiB.
MAX_RESPONSE_BYTES: Final = 8 << 20
# The label of operations that have no handler: anybody may have named them.
UNKNOWN: Final = "unknown"
# Seconds for a request that names no deadline; ours all do.
DEFAULT_TIMEOUT: Final = 30.0


class RequestContext(NamedTuple):
    """For whom something is asked: a verified client id (None: anonymous), W3C trace context."""

    client_id: str | None = None
    traceparent: str | None = None


ANONYMOUS: Final = RequestContext()
Handler = Callable[[RequestContext, bytes], Awaitable[Any]]


class NoResponseError(InfrastructureError):
    """The request was sent and no answer came: whether it was fulfilled is unknown."""


class UnavailableError(InfrastructureError):
    """The request was not sent, or reached no queue: nothing was done."""


class _Session:
    """The requests in flight on one channel; it ends with the channel."""

    def __init__(self, channel: InterceptedChannel) -> None:
        self.channel = channel
        self.pending: dict[str, asyncio.Future[bytes]] = {}
        self.ids = count(1)
        channel.on_delivery = self._answered
        channel.on_return = self._returned

    def fail(self, error: InfrastructureError) -> None:
        for answer in self.pending.values():
            _fail(answer, error)

    def _answered(self, delivery: Delivery) -> None:
        answer = self.pending.get(_correlation_id(delivery.header))
        if answer is not None and not answer.done():
            answer.set_result(delivery.body)

    def _returned(self, text: str, header: bytes) -> None:
        answer = self.pending.get(_correlation_id(header))
        if answer is not None:
            _fail(answer, UnavailableError(f"nobody takes such requests: {text}"))


def _correlation_id(header: bytes) -> str:
    return codec.decode_properties(header).correlation_id or ""


def _fail(answer: asyncio.Future[bytes], error: InfrastructureError) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()  # whoever has stopped waiting need not be told


class RpcClient:
    """One connection of its own to ask on, kept open by `run`."""

    def __init__(self, url: str, *, name: str, health: Health) -> None:
        self._url = url
        self._name = name
        self._health = health
        health.expect("broker")
        self._session: _Session | None = None
        self._blocked = False
        self._ready = asyncio.Event()

    async def run(self) -> None:
        """Keep the connection open until cancelled."""
        await keep_connected(
            self._url, name=self._name, part="broker", health=self._health, session=self._ask_on
        )

    async def ready(self) -> None:
        """Wait until asking is possible: connected, and no alarm."""
        await self._ready.wait()

    async def ask(
        self,
        queue: str,
        operation: str,
        body: bytes,
        *,
        context: RequestContext = ANONYMOUS,
        timeout: float,  # noqa: ASYNC109 - it is carried in the request, too
    ) -> Any:
        """The answer to a request: a value, or a `Failure`.

        Nothing is sent again by itself: whoever asks knows what a repeat would mean. After
        `timeout` seconds nobody waits for the answer, and a request still in its queue is dropped.

        Raises:
            UnavailableError: the request was not sent, so nothing was done.
            NoResponseError: none in time, or the connection was lost: what was done is unknown.
        """
        session = self._session
        if session is None:
            raise UnavailableError("not connected to the broker")
        if self._blocked:
            raise UnavailableError("the broker blocks publishing: an alarm is on")
        if len(session.pending) >= MAX_IN_FLIGHT:
            raise UnavailableError(f"{MAX_IN_FLIGHT} requests are waiting for their answers")
        correlation_id = str(next(session.ids))
        frames = codec.encode_publish(
            session.channel.number,
            "",
            queue,
            Properties(
                content_type=JSON,
                type=operation,
                correlation_id=correlation_id,
                reply_to=REPLY_TO,
                expiration=str(max(int(timeout * 1000), 1)),
                headers=_headers(context),
            ),
            body,
            mandatory=True,
            frame_max=session.channel.frame_max,
        )
        answer = session.pending[correlation_id] = asyncio.get_running_loop().create_future()
        session.channel.write(frames)
        try:
            async with asyncio.timeout(timeout):
                return _read(await answer)
        except TimeoutError:
            raise NoResponseError(f"no answer within {timeout:g} s") from None
        finally:
            del session.pending[correlation_id]

    async def _ask_on(self, link: BrokerConnection) -> None:
        channel, intercepted = await link.channel(confirms=False)
        session = _Session(intercepted)
        await channel.basic_consume(REPLY_TO, never, no_ack=True)
        link.interceptor.on_blocked = self._alarm
        self._session = session
        self._alarm(blocked=False)
        try:
            await wait_until_lost(channel)
        finally:
            self._session = None
            self._ready.clear()
            session.fail(NoResponseError("the connection was lost before the answer"))

    def _alarm(self, blocked: bool) -> None:  # noqa: FBT001 - a callback's signature
        self._blocked = blocked
        if blocked:
            self._ready.clear()
            self._health.down("broker", "it blocks publishing: an alarm is on")
        else:
            self._ready.set()
            self._health.up("broker")


def _read(body: bytes) -> Any:
    # Not pydantic's parser: what one service lets in at 200 levels of nesting comes back with more.
    try:
        answer = json.loads(body)
        error = answer.get("error")
        return answer["ok"] if error is None else Failure.model_validate(error)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NoResponseError(f"the answer can't be read: {type(error).__name__}") from error


class RpcServer:
    """One connection that answers the requests of one queue, kept open by `run`.

    `handlers`: by operation; each is given the asker and the body, and returns a value or a
    `Failure`. They run side by side, at most `prefetch` at a time. An InfrastructureError answers
    `unavailable`, any other error `internal`. One that has not ended by the asker's deadline is
    cancelled: nobody waits for it any more.
    """

    def __init__(  # noqa: PLR0913 - the composition root names each
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
        self._url = url
        self._name = name
        self._topology = topology
        self._prefetch = prefetch
        self._health = health
        health.expect("requests")
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._current: Subscription | None = None
        self._outcomes: dict[tuple[str, str], Counter] = {}

    async def run(self) -> None:
        """Answer until cancelled.

        Raises:
            TopologyMismatch: the broker's queues are not ours.
        """
        await keep_connected(
            self._url,
            name=self._name,
            part="requests",
            health=self._health,
            session=self._answer_on,
        )

    async def drain(self, grace: float) -> None:
        """Take nothing more, answer what is in flight within `grace` s; the rest goes back."""
        self._draining = True
        if self._current is not None:
            await self._current.stop()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=grace)
            for task in late:
                task.cancel()

    async def _answer_on(self, link: BrokerConnection) -> None:
        if self._draining:
            return
        await declare(link.connection, self._topology)
        requests = await subscribe(link, self._queue)
        channel = requests.intercepted
        loop = asyncio.get_running_loop()

        def take(delivery: Delivery) -> None:
            task = loop.create_task(self._process(delivery, channel))
            self._tasks.add(task)
            task.add_done_callback(partial(ended, delivery.tag))

        def ended(tag: int, task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                return  # not acked: the broker gives it to another
            if task.exception() is not None:
                logger.critical("bug in the responder", exc_info=task.exception())
            channel.write(codec.encode_ack(channel.number, tag, multiple=False))

        await requests.start(take, prefetch=self._prefetch)
        self._current = requests
        self._health.up("requests")
        try:
            await requests.lasts(idle=lambda: not (self._tasks or self._draining))
        finally:
            self._current = None

    async def _process(self, delivery: Delivery, channel: InterceptedChannel) -> None:
        """Answer one request. It is acked when this ends, so after its answer is written."""
        try:
            request = codec.decode_properties(delivery.header)
        except ContractViolationError as error:
            logger.warning("a request is dropped: %s", error)
            return
        reply_to = request.reply_to or ""
        if not reply_to.startswith(REPLY_TO):  # else anybody could have us write to any queue
            logger.warning("a request is dropped: it names no direct reply-to")
            return
        operation = request.type if request.type in self._handlers else UNKNOWN
        try:
            async with asyncio.timeout(_seconds(request.expiration)):
                value = await self._value(request, delivery.body)
        except TimeoutError:
            self._count(operation, "late")
            return
        body, outcome = self._encoded(value, request)
        self._count(operation, outcome)
        channel.write(
            codec.encode_publish(
                channel.number,
                "",
                reply_to,
                Properties(content_type=JSON, correlation_id=request.correlation_id),
                body,
                mandatory=False,  # an asker that is gone is no fault
                frame_max=channel.frame_max,
            )
        )

    async def _value(self, request: Properties, body: bytes) -> Any:
        handler = self._handlers.get(request.type or "")
        if handler is None:  # asked by a newer version: its users may try again after our upgrade
            return Failure(
                code=FailureCode.UNAVAILABLE, detail=f"there is no operation {request.type!r} here"
            )
        client_id = (request.headers or {}).get(headers.CLIENT_ID)
        if not (client_id is None or isinstance(client_id, str)):
            return Failure(code=FailureCode.INVALID, detail="the client id is not a text")
        try:
            return await handler(
                RequestContext(client_id, headers.traceparent(request.headers)), body
            )
        except InfrastructureError as error:
            return Failure(code=FailureCode.UNAVAILABLE, detail=str(error))
        except Exception as error:  # noqa: BLE001 - a bug is no reason to answer no more
            return self._bug(error, request)

    def _encoded(self, value: Any, request: Properties) -> tuple[bytes, str]:
        """The answer's body, and the name of its outcome."""
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
                    detail=f"the answer is longer than {MAX_RESPONSE_BYTES} bytes: ask for less",
                )
        return to_json({"error": value}), value.code

    def _bug(self, error: Exception, request: Properties) -> Failure:
        BUGS.labels(self._queue).inc()
        logger.error("bug in a handler", extra={"operation": request.type}, exc_info=error)
        return Failure(code=FailureCode.INTERNAL, detail="internal error")

    def _count(self, operation: str | None, outcome: str) -> None:
        key = (operation or UNKNOWN, outcome)
        counter = self._outcomes.get(key)
        if counter is None:
            counter = self._outcomes[key] = REQUESTS.labels(self._queue, *key)
        counter.inc()


def _headers(context: RequestContext) -> dict[str, str] | None:
    given = {headers.CLIENT_ID: context.client_id, headers.TRACEPARENT: context.traceparent}
    return {name: value for name, value in given.items() if value is not None} or None


def _seconds(expiration: str | None) -> float:
    """The deadline in a request; RabbitMQ itself takes nothing but a number of milliseconds."""
    return DEFAULT_TIMEOUT if expiration is None else int(expiration) / 1000
