"""E6, M7: each message is sent once and before it expires, and facts report its outcome."""

import logging

import pytest
from prometheus_client import REGISTRY

from tests.fakes.delivering import (
    CANARY,
    delivery_database,
    delivery_in_process,
    email,
    message_client,
    seconds_from_now,
    settings,
    sms,
)
from tests.fakes.sandbox import running_sandbox
from tests.fakes.smtp import mail_server
from tests.fakes.waiting import until


@pytest.fixture
async def url(database_url: str) -> str:
    return await delivery_database(database_url)


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_e6_an_email_arrives_with_all_its_headers(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    message = email(
        subject=f"Новые фильмы {CANARY}",
        html=f"<p>Hello {CANARY}</p>",
        unsubscribe_url=f"https://shop.example.com/u?t={CANARY}",
    )
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with running_sandbox() as sandbox, message_client(amqp_url) as client:
        with caplog.at_level(logging.INFO):
            async with delivery_in_process(monkeypatch, amqp_url, settings(sandbox, url)):
                await client.send(
                    message, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
                )
                fact = await client.fact(message, "sent")
        [email_message] = await sandbox.received("/api/mails", to=message["to"])
    headers = dict(email_message["headers"])
    assert (email_message["from"], email_message["to"]) == (
        "news@shop.example.com",
        [message["to"]],
    )
    assert email_message["id"] == headers["Message-ID"] == f"<{message['id']}@shop.example.com>"
    assert (
        email_message["subject"],
        email_message["text"].strip(),
        email_message["html"].strip(),
    ) == (
        message["subject"],
        message["text"],
        message["html"],
    )
    assert headers["List-Unsubscribe"] == f"<{message['unsubscribe_url']}>"
    assert headers["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert (fact["posting_id"], fact["channel"], fact["attempt"]) == ("posting-1", "email", 1)
    [line] = [record for record in caplog.records if record.getMessage() == "message sent"]
    names = ("message_id", "posting_id", "user_id", "channel", "attempt", "trace_id")
    logged = tuple(vars(line)[name] for name in names)
    assert logged == (message["id"], "posting-1", "user-1", "email", 1, trace)
    assert not [record for record in caplog.records if CANARY in repr(vars(record))]


async def test_e6_an_sms_reaches_the_gateway_with_a_valid_token(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, url: str
) -> None:
    message = sms()
    async with running_sandbox() as sandbox, message_client(amqp_url) as client:
        async with delivery_in_process(monkeypatch, amqp_url, settings(sandbox, url)):
            await client.send(message)
            fact = await client.fact(message, "sent")
        [received] = await sandbox.received("/api/sms", to=message["phone"])
    assert (received["id"], received["text"], received["from"]) == (
        message["id"],
        message["text"],
        "ringback",
    )
    assert (fact["channel"], fact["attempt"], fact["posting_id"]) == ("sms", 1, None)


async def test_e6_a_temporary_refusal_is_retried_and_a_permanent_one_dead_lettered(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, url: str
) -> None:
    greylisted, undeliverable, refused = email(), email(to=f"{CANARY}@gone.example.org"), sms()
    async with running_sandbox() as sandbox, message_client(amqp_url) as client:
        greylisting = {"behaviour": {"kind": "fail", "status": 451}, "at": "data", "times": 1}
        await sandbox.configure("/api/mails/settings", **greylisting)
        await sandbox.configure(
            "/api/sms/settings", behaviour={"kind": "respond", "body": "<html>"}, times=1
        )
        async with delivery_in_process(monkeypatch, amqp_url, settings(sandbox, url)):
            await client.send(greylisted, refused)
            await client.fact(greylisted, "attempt_failed")
            unknown_recipient = {
                "behaviour": {"kind": "fail", "status": 550},
                "to": ["*@gone.example.org"],
            }
            await sandbox.configure("/api/mails/settings", **unknown_recipient)
            await client.send(undeliverable)
            await client.fact(undeliverable, "failed")
            for message in (greylisted, refused):
                await client.fact(message, "sent")
        attempts = (await sandbox.get("/api/mails", to=greylisted["to"]))["items"]
        dead = await client.dead_letter("messages.email.dead")
    assert client.outcomes(greylisted) == client.outcomes(refused) == ["attempt_failed", "sent"]
    assert client.outcomes(undeliverable) == ["failed"]
    assert {each["id"] for each in attempts} == {f"<{greylisted['id']}@shop.example.com>"}
    assert [each["accepted"] for each in attempts] == [True, False]
    reason = "the mail server responded with 550 5.0.0 to RCPT"
    assert (
        dead.headers["x-ringback-reason"] == client.facts_of(undeliverable)[0]["reason"] == reason
    )


async def test_e6_a_duplicate_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, url: str
) -> None:
    message = email()
    before = counted("ringback_message_repeats_total", channel="email")
    async with running_sandbox() as sandbox, message_client(amqp_url) as client:
        await sandbox.configure("/api/mails/settings", behaviour={"kind": "delay", "seconds": 0.3})
        async with delivery_in_process(monkeypatch, amqp_url, settings(sandbox, url)):
            await client.send(message, message)  # at the same time: the second one is deferred
            await until(lambda: client.sent()[message["id"]] == 2)
            await client.send(message)  # later
            await until(lambda: client.sent()[message["id"]] == 3)
        assert len(await sandbox.received("/api/mails")) == 1
    assert len({fact["fact_id"] for fact in client.facts}) == 1
    assert counted("ringback_message_repeats_total", channel="email") == before + 2


async def test_e6_expired_messages_are_not_sent(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, url: str
) -> None:
    expired, expiring, retried = (
        email(expires_at=seconds_from_now(-1)),
        email(expires_at=seconds_from_now(0.5)),
        sms(),
    )
    waiting = sms(expires_at=seconds_from_now(1.5))
    async with running_sandbox() as sandbox, message_client(amqp_url) as client:
        await sandbox.configure("/api/mails/settings", behaviour={"kind": "delay", "seconds": 0.7})
        # The SMS `waiting` fails first, and expires before its next attempt.
        await sandbox.configure("/api/sms/settings", behaviour={"kind": "fail", "status": 503})
        async with delivery_in_process(monkeypatch, amqp_url, settings(sandbox, url)):
            await client.send(expired, expiring, waiting, retried)
            for message in (expired, expiring, waiting):
                await client.fact(message, "expired")
            await client.fact(retried, "attempt_failed")
            await sandbox.configure("/api/sms/settings")
            await client.fact(retried, "sent")
        assert (await sandbox.get("/api/mails"))["items"] == []
        assert {each["id"] for each in await sandbox.received("/api/sms")} == {retried["id"]}
        assert await client.length("messages.email.dead") == 2
        assert await client.length("messages.sms.dead") == 1
    assert client.outcomes(expired) == client.outcomes(expiring) == ["expired"]
    assert client.outcomes(waiting)[-1] == "expired"


async def test_e6_an_invalid_message_is_dead_lettered_with_every_error_named(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, url: str
) -> None:
    wrong = email(to="nobody", subject="a\nBcc: evil@example.org", colour="red")
    async with running_sandbox() as sandbox, message_client(amqp_url) as client:
        async with delivery_in_process(monkeypatch, amqp_url, settings(sandbox, url)):
            await client.send(wrong, headers={"x-ringback-id": wrong["id"]})
            await client.fact(wrong, "failed")
        dead = await client.dead_letter("messages.email.dead")
    reason = str(dead.headers["x-ringback-reason"])
    assert all(name in reason for name in ("to: ", "subject: ", "colour: "))
    assert "evil" not in reason


async def test_e6_messages_of_a_channel_that_is_not_configured_wait(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    sms_message, email_message = sms(), email()
    async with running_sandbox() as sandbox, message_client(amqp_url) as client:
        only_email = settings(sandbox, url, RINGBACK_SMS_URL="", RINGBACK_SMS_KEY="")
        async with delivery_in_process(monkeypatch, amqp_url, only_email) as process:
            await client.send(sms_message, email_message)
            await client.fact(email_message, "sent")
            assert process.health.report()["parts"] == {
                "database": "ok",
                "publisher": "ok",
                "facts": "ok",
                "requests": "ok",
                "email urgent consumer": "ok",
                "email bulk consumer": "ok",
            }
            assert await client.length("messages.sms") == 1
        warnings = [record.getMessage() for record in caplog.records if "not set" in record.message]
        assert warnings == ["RINGBACK_SMS_URL is not set: messages wait in messages.sms"]
        async with delivery_in_process(monkeypatch, amqp_url, settings(sandbox, url)):
            await client.fact(sms_message, "sent")


async def test_m14_each_request_to_a_provider_and_its_response_are_a_log_line_with_all_ids(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    ids = {"mailing_id": "a-1", "recipient_id": "r-1"}
    message = sms(**ids)
    async with running_sandbox() as sandbox, message_client(amqp_url) as client:
        refusal = {"kind": "respond", "body": f'{{"code": 7, "message": "{message["phone"]}"}}'}
        await sandbox.configure("/api/sms/settings", behaviour=refusal, times=2)
        with caplog.at_level(logging.INFO):
            async with delivery_in_process(monkeypatch, amqp_url, settings(sandbox, url)):
                await client.send(message)
                await client.fact(message, "sent")
        requests = (await sandbox.get("/api/sms", to=message["phone"]))["items"]
    lines = [vars(record) for record in caplog.records]
    story = [line for line in lines if line.get("message_id") == message["id"]]
    assert len(story) == len(requests) == 3
    assert [(line["message"], line.get("error"), line.get("status")) for line in story] == [
        *[
            (
                "message attempt failed",
                "the SMS gateway responded with 200, but refused with code 7",
                None,
            )
        ]
        * 2,
        ("message sent", None, 200),
    ]
    assert all(ids.items() <= line.items() for line in story)
    logged = repr(lines)
    assert CANARY not in logged
    assert message["phone"] not in logged


async def test_m7_email_does_not_wait_for_a_hanging_sms_gateway(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, url: str
) -> None:
    backlog, emails = [sms() for _ in range(600)], [email() for _ in range(300)]
    async with running_sandbox() as sandbox, message_client(amqp_url) as client:
        environment = settings(
            sandbox,
            url,
            RINGBACK_DELIVERY_PREFETCH="200",
            RINGBACK_DELIVERY_SMS_TIMEOUT="60",
            RINGBACK_SHUTDOWN_TIMEOUT="2.5",  # shorter than the hanging requests
        )
        async with delivery_in_process(monkeypatch, amqp_url, environment):
            await sandbox.configure("/api/sms/settings", behaviour={"kind": "hang"})
            await client.send(*backlog)
            await client.send(*emails)
            await until(lambda: client.sent().keys() >= {each["id"] for each in emails})
            # No SMS has ended: they wait in place and do not circle through the tiers.
            assert await client.length("messages.sms") == 400
            assert {fact["channel"] for fact in client.facts} == {"email"}


async def test_n9_finding_c5_and_d4_an_urgent_message_does_not_wait_for_a_bulk(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, url: str
) -> None:
    bulk = [email() for _ in range(1000)]
    async with running_sandbox() as sandbox, message_client(amqp_url) as client:
        await sandbox.configure("/api/mails/settings", behaviour={"kind": "delay", "seconds": 0.1})
        environment = settings(sandbox, url, RINGBACK_DELIVERY_SMTP_CONNECTIONS="2")
        async with delivery_in_process(monkeypatch, amqp_url, environment):
            await client.send(*bulk)
            await until(client.sent)
            for _ in range(3):
                urgent, before = email(), len(client.sent())
                await client.send(urgent, priority="urgent")
                await client.fact(urgent, "sent")
                assert len(client.sent()) - before < len(bulk) / 10


async def test_finding_c2_two_processes_send_each_copy_of_a_message_once(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, url: str
) -> None:
    messages = [email() for _ in range(200)]
    async with running_sandbox() as sandbox, message_client(amqp_url) as client:
        environment = settings(sandbox, url, RINGBACK_DELIVERY_PREFETCH="50")
        async with (
            delivery_in_process(monkeypatch, amqp_url, environment),
            delivery_in_process(monkeypatch, amqp_url, environment),
        ):
            await client.send(*messages, *messages, *messages)
            await until(lambda: client.sent().total() == 3 * len(messages))
        mails = await sandbox.get("/api/mails/settings")
    assert mails["accepted"] == len(messages)
    assert len({fact["fact_id"] for fact in client.facts}) == len(messages)


async def test_finding_d10_the_connections_adapt_to_the_limit_of_the_server(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, url: str
) -> None:
    messages = [email() for _ in range(300)]
    async with mail_server() as server, running_sandbox() as sandbox:
        server.max_connections = 5
        async with message_client(amqp_url) as client:
            environment = settings(sandbox, url, RINGBACK_SMTP_URL=server.url())
            async with delivery_in_process(monkeypatch, amqp_url, environment):
                await client.send(*messages)
                await until(lambda: len(client.sent()) == len(messages))
    assert {fact["type"] for fact in client.facts} == {"message.sent"}
    assert len(server.mails) == len(messages)
    assert server.refused < 20
