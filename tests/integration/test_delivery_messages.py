"""E6: messages become mails and SMS, once, not too late, and facts tell what became of them."""

import asyncio
import logging

import pytest
from prometheus_client import REGISTRY

from tests.fakes.delivering import CANARY, Around, around, at_work, email, settings, sms, within
from tests.fakes.sandbox import sandbox
from tests.fakes.waiting import until


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_e6_an_email_arrives_with_all_that_a_mail_program_needs(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    order = email(
        subject=f"Новые фильмы {CANARY}",
        html=f"<p>Hello {CANARY}</p>",
        unsubscribe_url=f"https://shop.example.com/u?t={CANARY}",
    )
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with sandbox() as box, around(amqp_url) as it:
        with caplog.at_level(logging.INFO):
            async with at_work(monkeypatch, amqp_url, settings(box)):
                await it.send(order, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
                fact = await it.fact(order, "sent")
        [mail] = await box.received("/api/mails", to=order["to"])
    headers = dict(mail["headers"])
    assert (mail["from"], mail["to"]) == ("news@shop.example.com", [order["to"]])
    assert mail["id"] == headers["Message-ID"] == f"<{order['id']}@shop.example.com>"
    assert (mail["subject"], mail["text"].strip(), mail["html"].strip()) == (
        order["subject"],
        order["text"],
        order["html"],
    )
    assert headers["List-Unsubscribe"] == f"<{order['unsubscribe_url']}>"
    assert headers["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert (fact["posting_id"], fact["channel"], fact["attempt"]) == ("posting-1", "email", 1)
    [line] = [record for record in caplog.records if record.getMessage() == "message sent"]
    names = ("message_id", "posting_id", "user_id", "channel", "attempt", "trace_id")
    told = tuple(vars(line)[name] for name in names)
    assert told == (order["id"], "posting-1", "user-1", "email", 1, trace)
    everything = [repr(vars(record)) for record in caplog.records]
    assert not [each for each in everything if CANARY in each]


async def test_e6_an_sms_reaches_the_gateway_with_a_token_it_takes(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str
) -> None:
    order = sms()
    async with sandbox() as box, around(amqp_url) as it:
        async with at_work(monkeypatch, amqp_url, settings(box)):
            await it.send(order)
            fact = await it.fact(order, "sent")
        [came] = await box.received("/api/sms", to=order["phone"])
    assert (came["id"], came["text"], came["from"]) == (order["id"], order["text"], "ringback")
    assert (fact["channel"], fact["attempt"], fact["posting_id"]) == ("sms", 1, None)


async def test_e6_refused_for_now_it_is_tried_again_under_the_same_id_and_for_good_it_is_dead(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str
) -> None:
    later, never, refused = email(), email(to=f"{CANARY}@gone.example.org"), sms()
    async with sandbox() as box, around(amqp_url) as it:
        greylisted = {"behaviour": {"kind": "fail", "status": 451}, "at": "data", "times": 1}
        await box.configure("/api/mails/settings", **greylisted)
        await box.configure(
            "/api/sms/settings", behaviour={"kind": "respond", "body": "<html>"}, times=1
        )
        async with at_work(monkeypatch, amqp_url, settings(box)):
            await it.send(later, refused)
            await it.fact(later, "attempt_failed")
            gone = {"behaviour": {"kind": "fail", "status": 550}, "to": ["*@gone.example.org"]}
            await box.configure("/api/mails/settings", **gone)
            await it.send(never)
            await it.fact(never, "failed")
            for order in (later, refused):
                await it.fact(order, "sent")
        tries = (await box.get("/api/mails", to=later["to"]))["items"]
        letter = await it.letter("messages.email.dead")
    assert it.kinds(later) == it.kinds(refused) == ["attempt_failed", "sent"]
    assert it.kinds(never) == ["failed"]
    assert {each["id"] for each in tries} == {f"<{later['id']}@shop.example.com>"}
    assert [each["accepted"] for each in tries] == [True, False]
    reason = "the mail server responded with 550 5.0.0 to RCPT"
    assert letter.headers["x-ringback-reason"] == it.facts_of(never)[0]["reason"] == reason


async def test_e6_a_message_that_comes_twice_goes_out_once(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str
) -> None:
    order = email()
    before = counted("ringback_message_repeats_total", channel="email")
    async with sandbox() as box, around(amqp_url) as it:
        await box.configure("/api/mails/settings", behaviour={"kind": "delay", "seconds": 0.3})
        async with at_work(monkeypatch, amqp_url, settings(box)):
            await it.send(order, order)  # at once: the second is put off, and recognised then
            await until(lambda: it.sent()[order["id"]] == 2)
            await it.send(order)  # and later
            await until(lambda: it.sent()[order["id"]] == 3)
        assert len(await box.received("/api/mails")) == 1
    assert len({fact["fact_id"] for fact in it.facts}) == 1
    assert counted("ringback_message_repeats_total", channel="email") == before + 2


async def test_e6_what_comes_too_late_or_expires_meanwhile_is_not_sent(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str
) -> None:
    late, slow, soon = email(expires_at=within(-1)), email(expires_at=within(0.5)), sms()
    waiting = sms(expires_at=within(1.5))
    async with sandbox() as box, around(amqp_url) as it:
        await box.configure("/api/mails/settings", behaviour={"kind": "delay", "seconds": 0.7})
        # The second SMS fails first, and its next try would come too late.
        await box.configure("/api/sms/settings", behaviour={"kind": "fail", "status": 503})
        async with at_work(monkeypatch, amqp_url, settings(box)):
            await it.send(late, slow, waiting, soon)
            for order in (late, slow, waiting):
                await it.fact(order, "expired")
            await it.fact(soon, "attempt_failed")
            await box.configure("/api/sms/settings")
            await it.fact(soon, "sent")
        assert (await box.get("/api/mails"))["items"] == []
        assert {each["id"] for each in await box.received("/api/sms")} == {soon["id"]}
        assert await it.length("messages.email.dead") == 2
        assert await it.length("messages.sms.dead") == 1
    assert it.kinds(late) == it.kinds(slow) == ["expired"]
    assert it.kinds(waiting)[-1] == "expired"


async def test_e6_what_is_no_message_is_dead_with_every_fault_named(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str
) -> None:
    wrong = email(to="nobody", subject="a\nBcc: evil@example.org", colour="red")
    async with sandbox() as box, around(amqp_url) as it:
        async with at_work(monkeypatch, amqp_url, settings(box)):
            await it.send(wrong, headers={"x-ringback-id": wrong["id"]})
            await it.fact(wrong, "failed")
        letter = await it.letter("messages.email.dead")
    reason = str(letter.headers["x-ringback-reason"])
    assert all(name in reason for name in ("to: ", "subject: ", "colour: "))
    assert "evil" not in reason


async def test_e6_a_way_that_is_not_configured_waits(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    text, mail = sms(), email()
    async with sandbox() as box, around(amqp_url) as it:
        only_email = settings(box, RINGBACK_SMS_URL="", RINGBACK_SMS_KEY="")
        async with at_work(monkeypatch, amqp_url, only_email) as process:
            await it.send(text, mail)
            await it.fact(mail, "sent")
            assert process.health.report()["parts"] == {"publisher": "ok", "email consumer": "ok"}
            assert await it.length("messages.sms") == 1
        said = [record.getMessage() for record in caplog.records if "not set" in record.message]
        assert said == ["RINGBACK_SMS_URL is not set: messages wait in messages.sms"]
        async with at_work(monkeypatch, amqp_url, settings(box)):
            await it.fact(text, "sent")


async def told(it: Around, emails: int) -> float:
    """Seconds until so many e-mails are sent."""
    orders = [email() for _ in range(emails)]
    loop = asyncio.get_running_loop()
    started = loop.time()
    await it.send(*orders)
    await until(lambda: it.sent().keys() >= {each["id"] for each in orders})
    return loop.time() - started


async def test_m7_a_hanging_sms_gateway_costs_email_nothing(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str
) -> None:
    backlog = [sms() for _ in range(600)]
    async with sandbox() as box, around(amqp_url) as it:
        given = settings(
            box,
            RINGBACK_DELIVERY_PREFETCH="200",
            RINGBACK_DELIVERY_SMS_TIMEOUT="60",
            RINGBACK_SHUTDOWN_TIMEOUT="2.5",  # nobody waits for what hangs
        )
        async with at_work(monkeypatch, amqp_url, given):
            usual = [await told(it, 300) for _ in range(2)]
            await box.configure("/api/sms/settings", behaviour={"kind": "hang"})
            await it.send(*backlog)
            hanging = [await told(it, 300) for _ in range(2)]
            # They wait where they are, and do not circle through the tiers.
            assert await it.length("messages.sms") == 400
            assert {fact["channel"] for fact in it.facts} == {"email"}
    assert min(hanging) < 2 * min(usual)
