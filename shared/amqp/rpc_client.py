"""Sends requests to other services over RabbitMQ, and waits for their responses.

A request ends in one of three ways: with a response, known to have had no effect, or with an
unknown effect.
"""

import asyncio
import json
from functools import partial
from itertools import count
from typing import Any, Final

from shared.amqp import codec, spans
from shared.amqp.codec import Properties
from shared.amqp.confirms import Confirms, Replacements
from shared.amqp.connection import (
    BrokerConnection,
    keep_connected,
    run_until_first_ends,
    wait_until_lost,
)
from shared.amqp.flow_control import FlowControl, fail
from shared.amqp.frame_interceptor import Delivery, InterceptedChannel
from shared.amqp.rpc import ANONYMOUS, JSON, REPLY_TO, RequestContext, context_headers
from shared.amqp.subscription import ignore_delivery
from shared.contracts.requests import Failure
from shared.errors import InfrastructureError
from shared.ids import uuid7
from shared.process.health import Health
from shared.tracing import active

# Requests in flight from one client. A service handles far fewer within their timeout, so more
# would only time out.
MAX_IN_FLIGHT: Final = 5_000


class UnavailableError(InfrastructureError):
    """The request had no effect: it was not sent, or it reached no queue."""


class NoResponseError(InfrastructureError):
    """The effect of the request is unknown: it was sent, but no response arrived."""


class _Session:
    """The requests in flight on one channel. It ends with the channel."""

    def __init__(self, channel: InterceptedChannel, replacements: Replacements) -> None:
        self.channel = channel
        self.pending: dict[str, asyncio.Future[bytes]] = {}
        self.ids = count(1)
        self.confirms = Confirms(
            channel, replacements, confirmed=_confirmed, overdue=lambda _: None
        )
        channel.on_delivery = self._responded
        channel.on_return = self._returned

    def close(self) -> None:
        """Fail the requests in flight."""
        for response in self.pending.values():
            fail(response, NoResponseError("the connection was lost before the response"))

    def _responded(self, delivery: Delivery) -> None:
        response = self.pending.get(_correlation_id(delivery.header))
        if response is not None and not response.done():
            response.set_result(delivery.body)

    def _returned(self, text: str, header: bytes) -> None:
        response = self.pending.get(_correlation_id(header))
        if response is not None:
            fail(response, UnavailableError(f"no service consumes these requests: {text}"))


def _confirmed(response: asyncio.Future[bytes], accepted: bool) -> None:  # noqa: FBT001 - as called
    if not accepted:
        fail(response, UnavailableError("the queue of these requests is full"))


def _correlation_id(header: bytes) -> str:
    return codec.decode_properties(header).correlation_id or ""


class RpcClient:
    """Sends requests on its own connection, which `run` keeps open."""

    def __init__(self, url: str, *, name: str, health: Health) -> None:
        part = "broker"
        self._keep_connected = partial(keep_connected, url, name=name, part=part, health=health)
        self._flow: FlowControl[_Session] = FlowControl(part, health)
        self._replacements = Replacements()

    async def run(self) -> None:
        """Keep the connection open until cancelled."""
        await self._keep_connected(session=self._serve)

    async def ready(self) -> None:
        """Wait until requests can be sent: connected, and no alarm is on."""
        await self._flow.ready()

    async def request(
        self,
        queue: str,
        operation: str,
        body: bytes,
        *,
        context: RequestContext = ANONYMOUS,
        timeout: float,  # noqa: ASYNC109 - the request carries it, too
    ) -> Any:
        """Send a request, and return the value or the `Failure` in its response.

        Nothing is sent twice: only the caller knows whether a repeat is harmless. After `timeout`
        seconds the broker drops a request that is still in its queue.

        Raises:
            UnavailableError: the request had no effect.
            NoResponseError: its effect is unknown: no response in time, or the connection was lost.
        """
        if active.tracer is None:
            return await self._send(queue, operation, body, timeout, context)
        send = partial(self._send, queue, operation, body, timeout)
        return await spans.request(active.tracer, queue, operation, context, send)

    async def _send(
        self,
        queue: str,
        operation: str,
        body: bytes,
        timeout: float,  # noqa: ASYNC109 - as for `request`
        context: RequestContext,
    ) -> Any:
        session = self._flow.session
        if session is None:
            raise UnavailableError(self._flow.fault)
        if len(session.pending) >= MAX_IN_FLIGHT:
            raise UnavailableError(f"{MAX_IN_FLIGHT} requests are waiting for a response")
        correlation_id = str(next(session.ids))
        frames = codec.encode_publish(
            session.channel.number,
            "",
            queue,
            Properties(
                content_type=JSON,
                type=operation,
                message_id=uuid7().hex,
                correlation_id=correlation_id,
                reply_to=REPLY_TO,
                expiration=str(max(int(timeout * 1000), 1)),
                headers=context_headers(context),
            ),
            body,
            mandatory=True,
            frame_max=session.channel.frame_max,
        )
        response = session.pending[correlation_id] = asyncio.get_running_loop().create_future()
        session.confirms.send(frames, queue, response)
        try:
            async with asyncio.timeout(timeout):
                return _parse_response(await response)
        except TimeoutError:
            raise NoResponseError(f"no response within {timeout:g} s") from None
        finally:
            del session.pending[correlation_id]

    async def _serve(self, broker: BrokerConnection) -> None:
        # Responses are the proof that matters. Confirms only tell a slow service from a channel
        # whose requests the broker ignores.
        channel, intercepted = await broker.channel(confirms=True)
        session = _Session(intercepted, self._replacements)
        await channel.basic_consume(REPLY_TO, ignore_delivery, no_ack=True)
        try:
            with self._flow.use(session, broker.interceptor):
                await run_until_first_ends(
                    wait_until_lost(channel), session.confirms.watch(self._flow)
                )
        finally:
            session.close()


def _parse_response(body: bytes) -> Any:
    # Not pydantic's parser: it rejects the 201 levels of nesting that wrap a value of 200 levels.
    try:
        response = json.loads(body)
        error = response.get("error")
        return response["ok"] if error is None else Failure.model_validate(error, extra="ignore")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NoResponseError(f"the response is not valid: {type(error).__name__}") from error
