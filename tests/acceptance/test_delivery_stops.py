"""M2: a stop, and the end of a mailing, hold wherever its messages wait."""

import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from shared.errors import InfrastructureError
from tests.fakes.delivering import (
    StopRequests,
    delivery_database,
    delivery_process,
    message_client,
    requests_to_delivery,
    seconds_from_now,
    settings,
    sms,
)
from tests.fakes.sandbox import Sandbox, running_sandbox
from tests.fakes.waiting import until

# The promise.
GRACE = timedelta(seconds=2)
# One process has 10 requests in flight. If it did not stop, it would send 200 messages during
# GRACE. The sandbox lists up to 1,000.
TEXTS = 900
SENDING = {"kind": "delay", "seconds": 0.1}
# From the first message until the stop is confirmed, which can take some seconds.
SLOW = {"kind": "delay", "seconds": 0.5}


@pytest.fixture
async def url(database_url: str) -> str:
    return await delivery_database(database_url)


async def arrivals(sandbox: Sandbox) -> dict[str, datetime]:
    """Return when the gateway has accepted each message."""
    items = (await sandbox.get("/api/sms", limit=1000, accepted="true"))["items"]
    found = {each["id"]: datetime.fromisoformat(each["received_at"]) for each in items}
    assert len(found) == len(items), "no message was sent twice"
    return found


async def stop(request: StopRequests, **fields: Any) -> datetime:
    """Request a stop until it is confirmed, as mailings does, and return when that was."""
    while True:
        try:
            await request(version=1, **fields)
        except InfrastructureError:  # the suspended process has the request
            continue
        return datetime.now(UTC)


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(None, id="stopped"),
        pytest.param(1.0, id="end time", marks=pytest.mark.slow),
    ],
)
async def test_m2_a_stop_and_an_end_hold_in_queue_tier_and_in_another_suspended_process(
    amqp_url: str, url: str, tmp_path: Path, seconds: float | None
) -> None:
    mailing = uuid4().hex
    messages = [sms(mailing_id=mailing) for _ in range(TEXTS)]
    in_tier = [sms(mailing_id=mailing) for _ in range(20)]
    others = [sms(mailing_id=uuid4().hex) for _ in range(10)]
    async with (
        running_sandbox() as sandbox,
        message_client(amqp_url) as client,
        requests_to_delivery(amqp_url) as request,
    ):
        environment = settings(sandbox, url)
        with (
            delivery_process(tmp_path, amqp_url, environment) as one,
            delivery_process(tmp_path, amqp_url, environment) as suspended,
        ):
            await one.ready()
            await suspended.ready()
            await sandbox.configure("/api/sms/settings", behaviour=SENDING)
            await client.send(*messages, *others)
            await until(lambda: arrivals(sandbox))
            await sandbox.configure("/api/sms/settings", behaviour=SLOW)
            await client.send(*in_tier, queue="messages.sms.retry.15s")
            await suspended.idle()
            suspended.signal(signal.SIGSTOP)
            at = None if seconds is None else seconds_from_now(seconds)
            confirmed = await stop(request, mailing_id=mailing, at=at)
            await sandbox.configure("/api/sms/settings", behaviour=SENDING)
            ended = confirmed if at is None else max(confirmed, datetime.fromisoformat(at))
            await until(lambda: datetime.now(UTC) > ended + GRACE)
            suspended.signal(signal.SIGCONT)
            await until(
                lambda: all(
                    client.outcomes(each)[-1:] in (["sent"], ["returned"])
                    for each in (*messages, *in_tier)
                ),
                60,
            )
        with delivery_process(tmp_path, amqp_url, environment):  # one that starts later
            last = sms(mailing_id=mailing)
            await client.send(last)
            assert (await client.fact(last, "returned"))["code"] == "stopped"
            await until(lambda: all("sent" in client.outcomes(each) for each in others))
        arrived = await arrivals(sandbox)
        assert await client.length("messages.sms") == 0
    sent = [each for each in messages if each["id"] in arrived]
    assert 0 < len(sent) < TEXTS, "stopped too early or too late for this test"
    assert arrived.keys() == {each["id"] for each in (*sent, *others)}
    assert all(client.outcomes(each)[-1] == "sent" for each in sent)
    late = max(arrived[each["id"]] - ended for each in sent)
    assert late <= GRACE, late
