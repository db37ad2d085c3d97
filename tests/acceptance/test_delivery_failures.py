"""E6: the delivery process is killed or stopped with messages in flight, and loses none."""

import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.fakes.delivering import (
    CANARY,
    delivery_database,
    delivery_process,
    email,
    message_client,
    seconds_from_now,
    settings,
    sms,
)
from tests.fakes.sandbox import Sandbox, running_sandbox
from tests.fakes.waiting import until

PREFETCH = 100
IN_FLIGHT = 8


@pytest.fixture
async def url(database_url: str) -> str:
    return await delivery_database(database_url)


async def arrived(sandbox: Sandbox) -> Counter[str]:
    """Return how often each mail was accepted, by its Message-ID."""
    mails = (await sandbox.get("/api/mails", limit=1000))["items"]
    return Counter(each["id"] for each in mails if each["accepted"])


async def test_e6_and_finding_c2_a_killed_process_loses_no_message_and_repeats_those_in_flight(
    amqp_url: str, url: str, tmp_path: Path
) -> None:
    messages = [email() for _ in range(300)] + [sms() for _ in range(100)]
    expected = {f"<{each['id']}@shop.example.com>" for each in messages if "to" in each}
    async with running_sandbox() as sandbox, message_client(amqp_url) as client:
        slow = {"behaviour": {"kind": "delay", "seconds": 0.05}}
        await sandbox.configure("/api/mails/settings", **slow)
        await sandbox.configure("/api/sms/settings", **slow)
        environment = settings(
            sandbox,
            url,
            RINGBACK_DELIVERY_PREFETCH=str(PREFETCH),
            RINGBACK_DELIVERY_SMTP_CONNECTIONS=str(IN_FLIGHT),
            RINGBACK_DELIVERY_SMS_REQUESTS=str(IN_FLIGHT),
        )
        with delivery_process(tmp_path, amqp_url, environment) as first:
            await first.ready()
            await client.send(*messages)
            await until(lambda: arrived(sandbox))
            first.kill()
            assert len(await arrived(sandbox)) < len(expected), "killed too late"
        with delivery_process(tmp_path, amqp_url, environment) as second:
            await until(lambda: client.sent().keys() == {each["id"] for each in messages})
            assert CANARY not in second.output
        mails = await arrived(sandbox)
        texts = Counter(each["id"] for each in await sandbox.received("/api/sms", 100))
    assert mails.keys() == expected
    assert texts.keys() == {each["id"] for each in messages if "phone" in each}
    assert mails.total() - len(mails) <= 2 * IN_FLIGHT
    assert texts.total() - len(texts) <= 2 * IN_FLIGHT


async def test_e6_a_stopped_process_finishes_attempts_in_flight_and_repeats_none(
    amqp_url: str, url: str, tmp_path: Path
) -> None:
    messages = [email() for _ in range(200)]
    async with running_sandbox() as sandbox, message_client(amqp_url) as client:
        await sandbox.configure(
            "/api/sms/settings", behaviour={"kind": "respond", "body": "<html>"}
        )
        await sandbox.configure("/api/mails/settings", behaviour={"kind": "delay", "seconds": 0.1})
        with delivery_process(tmp_path, amqp_url, settings(sandbox, url)) as first:
            await first.ready()
            expiring = sms(expires_at=seconds_from_now(5))
            await client.send(expiring)
            await client.fact(expiring, "attempt_failed")
            await client.send(*messages)
            await until(lambda: arrived(sandbox))
            first.signal(signal.SIGTERM)
            assert await first.exit_code() == 0, first.output
            assert first.logged("stopped")
        done = await arrived(sandbox)
        assert 0 < len(done) < len(messages)
        await until(
            lambda: client.sent().total() == len(done)
        )  # each fact was published before the end
        await sandbox.configure("/api/mails/settings")
        await sandbox.configure("/api/sms/settings")
        await until(lambda: seconds_from_now(0) >= expiring["expires_at"])
        with delivery_process(tmp_path, amqp_url, settings(sandbox, url)):
            fact = await client.fact(expiring, "expired")
            await until(lambda: len(client.sent()) == len(messages))
        mails = await arrived(sandbox)
        assert (await sandbox.get("/api/sms", accepted="true"))["items"] == []
    assert fact["attempt"] >= 2
    assert client.outcomes(expiring)[-1] == "expired"
    assert mails.total() == len(mails) == len(messages), "no mail was sent twice"
