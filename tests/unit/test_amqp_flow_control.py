"""Flow control: a client has a session only while the broker accepts its messages."""

import asyncio

from shared.amqp.flow_control import BLOCKED, NOT_CONNECTED, FlowControl
from shared.amqp.frame_interceptor import FrameInterceptor
from shared.process.health import Health


def flow_control() -> tuple[FlowControl[str], FrameInterceptor, Health]:
    loop = asyncio.get_running_loop()
    health = Health()
    interceptor = FrameInterceptor(asyncio.StreamReader(loop=loop), loop)
    return FlowControl("publisher", health), interceptor, health


async def test_the_session_is_available_only_during_the_block() -> None:
    flow, interceptor, health = flow_control()
    assert (flow.session, flow.fault, health.ready) == (None, NOT_CONNECTED, False)
    waiting = asyncio.create_task(flow.ready())
    with flow.use("session", interceptor):
        assert (flow.session, health.ready) == ("session", True)
        await asyncio.wait_for(waiting, 5)
    assert (flow.session, flow.fault) == (None, NOT_CONNECTED)


async def test_the_session_is_unavailable_during_an_alarm() -> None:
    flow, interceptor, health = flow_control()
    with flow.use("session", interceptor):
        interceptor.on_blocked(True)  # noqa: FBT003 - as the interceptor calls it
        waiting = asyncio.create_task(flow.ready())
        await asyncio.sleep(0)
        assert (flow.session, flow.fault) == (None, BLOCKED)
        assert not waiting.done()
        assert "alarm" in str(health.fault)
        interceptor.on_blocked(False)  # noqa: FBT003
        assert (flow.session, health.ready) == ("session", True)
        await asyncio.wait_for(waiting, 5)


async def test_an_alarm_that_ends_after_the_session_does_not_revive_it() -> None:
    flow, interceptor, _ = flow_control()
    with flow.use("session", interceptor):
        interceptor.on_blocked(True)  # noqa: FBT003
    interceptor.on_blocked(False)  # noqa: FBT003
    assert (flow.session, flow.fault) == (None, NOT_CONNECTED)
