"""A service, killed with SIGKILL at one exact point of a request over AMQP.

`python -m tests.acceptance.crashing_rpc SERVICE POINT` runs the real service with an RPC client or
server that kills the process when a creation first reaches the point.
"""

import asyncio
import sys
from importlib import import_module
from typing import Any, Final

from services.gateway import app as gateway
from shared.amqp import codec
from shared.amqp.frame_interceptor import Delivery, InterceptedChannel
from shared.amqp.rpc_client import RpcClient
from shared.amqp.rpc_server import RpcServer
from shared.contracts.posting_requests import CREATE_POSTING
from shared.contracts.schedule_requests import CREATE_CALLBACK
from shared.process.run import Parts, serve
from shared.settings import Settings, load
from tests.acceptance.crashing import die

CREATIONS: Final = (CREATE_CALLBACK.name, CREATE_POSTING.name)
# In the service. The ack and the response are one write; the network may cut it in two.
SERVICE_POINTS: Final = (
    "before the handler",
    "before the ack",
    "between the ack and the response",
    "after the response",
)
GATEWAY_POINTS: Final = ("before the request", "after the request", "after the response")


class _AckOnly:
    """A channel that loses everything after the ack, with the process."""

    def __init__(self, channel: InterceptedChannel) -> None:
        self.number, self.frame_max = channel.number, channel.frame_max
        self._channel = channel

    def write(self, frames: bytes) -> None:
        self._channel.write(frames[: len(codec.encode_ack(self.number, 1, multiple=False))])


class CrashingServer(RpcServer):
    async def _process(self, channel: InterceptedChannel, delivery: Delivery) -> None:
        if codec.decode_properties(delivery.header).type not in CREATIONS:
            await super()._process(channel, delivery)
            return
        point = sys.argv[2]
        if point == "before the handler":
            die()
        elif point == "before the ack":
            await self._respond(channel, delivery)
        elif point == "between the ack and the response":
            await super()._process(_AckOnly(channel), delivery)  # type: ignore[arg-type]
        else:
            await super()._process(channel, delivery)
        await _sent()
        die()


async def _sent() -> None:
    """Wait until everything written is in the socket; the event loop sends it when it is idle."""
    for _ in range(5):
        await asyncio.sleep(0)


class CrashingClient(RpcClient):
    async def request(self, queue: str, operation: str, body: bytes, **named: Any) -> Any:
        if operation not in CREATIONS:
            return await super().request(queue, operation, body, **named)
        point = sys.argv[2]
        if point == "before the request":
            die()
        response = asyncio.ensure_future(super().request(queue, operation, body, **named))
        if point == "after the request":
            await _sent()
        else:
            await response
        die()
        return await response


if __name__ == "__main__":
    name = sys.argv[1]
    if name == "gateway":
        app: Any = gateway
        app.RpcClient = CrashingClient
    else:
        app = import_module(f"services.{name}.app")
        app.RpcServer = CrashingServer
    sys.exit(serve(name, app.start, load(Settings), Parts(metrics_port=0)))
