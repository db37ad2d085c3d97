"""E6: delivery as a process, killed and stopped with messages in flight: none is lost."""

import signal
from collections import Counter
from pathlib import Path

from tests.fakes.delivering import CANARY, around, delivery, email, settings, sms, within
from tests.fakes.sandbox import Sandbox, sandbox
from tests.fakes.waiting import until

PREFETCH = 100


async def arrived(box: Sandbox) -> Counter[str]:
    """How often each mail was taken, by its Message-ID."""
    mails = (await box.get("/api/mails", limit=1000))["items"]
    return Counter(each["id"] for each in mails if each["accepted"])


async def test_e6_killed_with_messages_in_flight_it_loses_none(
    amqp_url: str, tmp_path: Path
) -> None:
    orders = [email() for _ in range(300)] + [sms() for _ in range(100)]
    wanted = {f"<{each['id']}@shop.example.com>" for each in orders if "to" in each}
    async with sandbox() as box, around(amqp_url) as it:
        slowly = {"behaviour": {"kind": "delay", "seconds": 0.05}}
        await box.configure("/api/mails/settings", **slowly)
        await box.configure("/api/sms/settings", **slowly)
        given = settings(box, RINGBACK_DELIVERY_PREFETCH=str(PREFETCH))
        with delivery(tmp_path, amqp_url, given) as first:
            await first.ready()
            await it.send(*orders)
            await until(lambda: arrived(box))
            first.kill()
            assert len(await arrived(box)) < len(wanted), "too late to show anything"
        with delivery(tmp_path, amqp_url, given) as second:
            await until(lambda: it.sent().keys() == {each["id"] for each in orders})
            assert CANARY not in second.output
        mails = await arrived(box)
        texts = Counter(each["id"] for each in await box.received("/api/sms", 100))
    assert mails.keys() == wanted
    assert texts.keys() == {each["id"] for each in orders if "phone" in each}
    repeats = mails.total() - len(mails) + texts.total() - len(texts)
    assert repeats <= 2 * PREFETCH


async def test_e6_told_to_stop_it_finishes_what_it_has_begun_and_what_expires_in_a_tier_stays(
    amqp_url: str, tmp_path: Path
) -> None:
    orders = [email() for _ in range(200)]
    doomed = sms(expires_at=within(5))
    async with sandbox() as box, around(amqp_url) as it:
        await box.configure("/api/sms/settings", behaviour={"kind": "respond", "body": "<html>"})
        await box.configure("/api/mails/settings", behaviour={"kind": "delay", "seconds": 0.1})
        with delivery(tmp_path, amqp_url, settings(box)) as first:
            await first.ready()
            await it.send(doomed)
            await it.fact(doomed, "attempt_failed")
            await it.send(*orders)
            await until(lambda: arrived(box))
            first.signal(signal.SIGTERM)
            assert await first.exit_code() == 0, first.output
            assert first.logged("stopped")
        done = await arrived(box)
        assert 0 < len(done) < len(orders)
        await until(lambda: it.sent().total() == len(done))  # each was told before it ended
        await box.configure("/api/mails/settings")
        await box.configure("/api/sms/settings")
        await until(lambda: within(0) >= doomed["expires_at"])
        with delivery(tmp_path, amqp_url, settings(box)):
            fact = await it.fact(doomed, "expired")
            await until(lambda: len(it.sent()) == len(orders))
        mails = await arrived(box)
        assert (await box.get("/api/sms", accepted="true"))["items"] == []
    assert fact["attempt"] >= 2
    assert it.kinds(doomed)[-1] == "expired"
    assert mails.total() == len(mails) == len(orders), "none twice"
