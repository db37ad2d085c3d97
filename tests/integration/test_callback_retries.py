"""H3, row 30: failed attempts are retried in tiers, up to a dead letter or a failed dispatch."""

import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.topology import TIERS
from tests.fakes.broker_client import BrokerClient, identities, reason, send_callback
from tests.fakes.receivers import respond, serve
from tests.fakes.sandbox import Sandbox
from tests.fakes.waiting import until

QUICK = {"delays": [1]}  # one retry, through the shortest tier
HOSTILE_HEADERS: dict[str, Any] = {
    # as after dead-lettering; RabbitMQ before 4.0.1 loses messages that are republished with it
    "x-death": [
        {
            "queue": "callbacks.retry.1s",
            "reason": "expired",
            "count": 7,
            "exchange": "",
            "routing-keys": ["callbacks"],
            "time": datetime(2026, 1, 1, tzinfo=UTC),
        }
    ],
    "x-first-death-queue": "callbacks",
    "x-first-death-reason": "rejected",
    "x-delivery-count": 99,
    "x-ringback-attempt": "nonsense",
    "x-ringback-not-before": -5,
    "x-ringback-first-at": 2**63 - 1,
    "x-ringback-deferrals": {"a": "table"},
    "x-ringback-reason": "a lie",
    # a sender must not route the copies
    "CC": ["callbacks.dead"],
}


async def test_h3_a_callback_that_fails_twice_is_retried_through_the_tiers(
    publisher: BrokerClient, receiver: Sandbox
) -> None:
    url = await receiver.mailbox(behaviour={"kind": "fail", "status": 500}, times=2)
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    callback = await publisher.send(
        send_callback(url, retry={"delays": [1], "quick_retries_count": 2}),
        headers={**HOSTILE_HEADERS, "traceparent": trace, "x-tenant": "kept"},
        message_id="never-seen-by-the-receiver",
        app_id="shop",
        timestamp=datetime(2026, 1, 2, tzinfo=UTC),
    )
    webhooks = await receiver.webhooks(url, 3)
    assert [webhook["status"] for webhook in webhooks] == [500, 500, 200]
    assert {webhook["webhook_id"] for webhook in webhooks} == {callback}
    assert all(webhook["matched"] == ["x-signature", "webhook-signature"] for webhook in webhooks)
    timestamps = [int(webhook["headers"]["webhook-timestamp"]) for webhook in webhooks]
    assert timestamps[0] < timestamps[1] < timestamps[2], "each attempt is signed again"
    received = [datetime.fromisoformat(webhook["received_at"]).timestamp() for webhook in webhooks]
    assert all(second - first >= 1.0 for first, second in itertools.pairwise(received))
    assert {webhook["headers"]["traceparent"] for webhook in webhooks} == {trace}

    facts = await until(lambda: (f := publisher.facts_of(callback)) and len(f) == 3 and f)
    assert [(fact["type"], fact["attempt"]) for fact in facts] == [
        ("callback.attempt_failed", 1),
        ("callback.attempt_failed", 2),
        ("callback.delivered", 3),
    ]
    due = [datetime.fromisoformat(fact["next_at"]).timestamp() for fact in facts[:2]]
    assert all(abs(at - planned) < 2 for at, planned in zip(received[1:], due, strict=True))
    assert not [
        dead_letter
        for dead_letter in await publisher.read_dead_letters()
        if callback in str(dead_letter.headers)
    ], "a copy must not be routed by the sender's CC"


async def test_h3_the_copy_in_a_tier_has_no_broker_header(
    publisher: BrokerClient, receiver: Sandbox
) -> None:
    url = await receiver.mailbox(behaviour={"kind": "fail", "status": 500})
    callback = await publisher.send(
        send_callback(url, retry={"delays": [60]}), headers=HOSTILE_HEADERS, app_id="shop"
    )
    await publisher.fact(callback, "callback.attempt_failed")
    tier = await publisher.channel.get_queue("callbacks.retry.1m")
    copy = await tier.get(no_ack=True)
    assert copy is not None
    assert copy.headers.pop("x-delivery-count", 0) == 0, "the broker starts to count again"
    assert {name for name in copy.headers if not name.startswith("x-ringback-")} == set()
    assert copy.headers["x-ringback-id"] == callback
    assert copy.headers["x-ringback-attempt"] == 1
    assert (copy.app_id, copy.delivery_mode, copy.expiration) == ("shop", 2, None)


async def test_h3_a_message_with_exhausted_attempts_is_dead_lettered_unchanged(
    publisher: BrokerClient, receiver: Sandbox
) -> None:
    url = await receiver.mailbox(behaviour={"kind": "fail", "status": 500})
    body = send_callback(url, retry=QUICK)
    sent_at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    callback = await publisher.send(
        body, message_id="original", app_id="shop", timestamp=sent_at, headers={"tenant": "acme"}
    )
    dead_letter = await publisher.dead_letter(callback)
    assert reason(dead_letter) == ("gave up after 2 attempts: the receiver responded with 500")
    assert json.loads(dead_letter.body) == body
    assert (dead_letter.type, dead_letter.content_type) == ("SendCallback", "application/json")
    assert (dead_letter.app_id, dead_letter.timestamp) == ("shop", sent_at)
    assert dead_letter.headers["tenant"] == "acme"
    await publisher.fact(callback, "callback.dead")
    assert [fact["type"] for fact in publisher.facts_of(callback)] == [
        "callback.attempt_failed",
        "callback.dead",
    ]


async def test_h3_a_refused_connection_is_retried(publisher: BrokerClient) -> None:
    async with serve(respond()) as target:
        pass  # its port is closed
    callback = await publisher.send(send_callback(target.url, retry=QUICK))
    dead_letter = await publisher.dead_letter(callback)
    assert reason(dead_letter).startswith("gave up after 2 attempts: connect: ")


async def test_a_message_without_an_id_gets_one_before_the_first_attempt(
    publisher: BrokerClient, receiver: Sandbox
) -> None:
    url = await receiver.mailbox(behaviour={"kind": "fail", "status": 500}, times=1)
    body = send_callback(url, retry=QUICK)
    del body["id"]
    await publisher.send_without_message_id(body)
    webhooks = await receiver.webhooks(url, 2)
    (generated,) = {webhook["webhook_id"] for webhook in webhooks}
    assert generated
    assert len(generated) >= 32


async def test_an_unusual_message_id_is_replaced_by_the_same_id_on_every_attempt(
    publisher: BrokerClient, receiver: Sandbox
) -> None:
    url = await receiver.mailbox(behaviour={"kind": "fail", "status": 500}, times=1)
    body = send_callback(url, retry=QUICK)
    del body["id"]
    await publisher.send(body, message_id="smuggled\r\nX-Evil: ja, ö")
    webhooks = await receiver.webhooks(url, 2)
    assert len({webhook["webhook_id"] for webhook in webhooks}) == 1
    assert webhooks[0]["webhook_id"].isalnum()
    assert "x-evil" not in webhooks[0]["headers"]
    assert webhooks[1]["verified"]


@pytest.mark.parametrize("status", [429, 503])
async def test_row_30_retry_after_is_honoured(
    publisher: BrokerClient, receiver: Sandbox, status: int
) -> None:
    url = await receiver.mailbox(
        behaviour={"kind": "fail", "status": status, "retry_after": 30}, times=1
    )
    callback = await publisher.send(send_callback(url, retry=QUICK))
    fact = await publisher.fact(callback, "callback.attempt_failed")
    wait = datetime.fromisoformat(fact["next_at"]) - datetime.fromisoformat(fact["at"])
    tier = next(tier.seconds for tier in TIERS if tier.seconds >= 30)
    # The jitter stretches the delay by up to half.
    assert timedelta(seconds=tier - 1) <= wait <= timedelta(seconds=1.5 * tier + 1)


@pytest.mark.parametrize("retry_after", ["99999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_row_30_a_very_long_retry_after_is_limited(
    publisher: BrokerClient, receiver: Sandbox, retry_after: str
) -> None:
    url = await receiver.mailbox(
        behaviour={"kind": "fail", "status": 429, "retry_after": retry_after}, times=1
    )
    callback = await publisher.send(send_callback(url, retry=QUICK))
    fact = await publisher.fact(callback, "callback.attempt_failed")
    wait = datetime.fromisoformat(fact["next_at"]) - datetime.fromisoformat(fact["at"])
    assert timedelta(seconds=3599) <= wait <= timedelta(seconds=5401)


@pytest.mark.parametrize("retry_after", ["soon", "-5", "1e9", "١٢"])
async def test_row_30_an_invalid_retry_after_is_ignored(
    publisher: BrokerClient, retry_after: str
) -> None:
    async with serve(
        respond(429, {"Retry-After": retry_after.encode().decode("latin-1")})
    ) as target:
        callback = await publisher.send(send_callback(target.url, retry=QUICK))
        fact = await publisher.fact(callback, "callback.attempt_failed")
    wait = datetime.fromisoformat(fact["next_at"]) - datetime.fromisoformat(fact["at"])
    assert wait <= timedelta(seconds=1.6)


async def test_row_30_410_is_dead_lettered_at_once(
    publisher: BrokerClient, receiver: Sandbox
) -> None:
    url = await receiver.mailbox(behaviour={"kind": "fail", "status": 410})
    callback = await publisher.send(send_callback(url))
    dead_letter = await publisher.dead_letter(callback)
    assert "410" in reason(dead_letter)
    await publisher.fact(callback, "callback.dead")
    assert len(publisher.facts_of(callback)) == 1
    assert len(await receiver.webhooks(url)) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_row_30_a_redirect_is_a_failure_and_is_not_followed(
    publisher: BrokerClient, receiver: Sandbox, status: int
) -> None:
    async with serve(respond()) as redirect_target:
        url = await receiver.mailbox(
            behaviour={"kind": "redirect", "status": status, "location": redirect_target.url}
        )
        callback = await publisher.send(send_callback(url, retry={"quick_retries_count": 0}))
        dead_letter = await publisher.dead_letter(callback)
        assert str(status) in reason(dead_letter)
        assert redirect_target.accepted == 0


async def test_a_message_that_would_expire_before_its_retry_is_dead_lettered(
    publisher: BrokerClient, receiver: Sandbox
) -> None:
    url = await receiver.mailbox(behaviour={"kind": "fail", "status": 500})
    expires_at = datetime.now(UTC) + timedelta(seconds=3)
    callback = await publisher.send(
        send_callback(url, expires_at=expires_at.isoformat(), retry={"delays": [5]})
    )
    dead_letter = await publisher.dead_letter(callback)
    assert reason(dead_letter).startswith("expired after 1 attempt")
    assert len(await receiver.webhooks(url)) == 1


async def test_an_expired_message_is_not_sent(publisher: BrokerClient, receiver: Sandbox) -> None:
    url = await receiver.mailbox()
    callback = await publisher.send(send_callback(url, expires_at="2020-01-01T00:00:00Z"))
    dead_letter = await publisher.dead_letter(callback)
    assert reason(dead_letter).startswith("expired at 2020-01-01")
    marker = await publisher.send(send_callback(url))
    assert [webhook["webhook_id"] for webhook in await receiver.webhooks(url)] == [marker]


async def test_quick_retries_count_0_means_one_attempt(
    publisher: BrokerClient, receiver: Sandbox
) -> None:
    url = await receiver.mailbox(behaviour={"kind": "fail", "status": 500})
    callback = await publisher.send(send_callback(url, retry={"quick_retries_count": 0}))
    dead_letter = await publisher.dead_letter(callback)
    assert "gave up after 1 attempt: " in reason(dead_letter)


async def test_finding_a5_a_dispatch_that_expired_before_an_attempt_reports_none(
    publisher: BrokerClient, receiver: Sandbox
) -> None:
    url = await receiver.mailbox()
    expired = send_callback(url, expires_at="2026-01-01T00:00:00Z")
    owned = {
        "x-ringback-owner": "scheduler",
        "x-ringback-dispatch": 1,
        "x-ringback-id": expired["id"],
    }
    callback = await publisher.send(expired, headers=owned)
    fact = await publisher.fact(callback, "callback.dispatch_failed")
    assert (fact["attempt"], fact["final"]) == (0, False)


@pytest.mark.parametrize(
    ("status", "retry", "final", "text"),
    [
        (500, {"quick_retries_count": 0}, False, "the receiver responded with 500"),
        (500, QUICK, False, "the receiver responded with 500"),
        (410, QUICK, True, "the receiver responded with 410: gone for good"),
    ],
)
async def test_a_message_of_the_scheduler_ends_in_a_failed_dispatch_and_not_in_a_dead_letter(  # noqa: PLR0913
    publisher: BrokerClient,
    receiver: Sandbox,
    status: int,
    retry: dict[str, Any],
    text: str,
    *,
    final: bool,
) -> None:
    url = await receiver.mailbox(behaviour={"kind": "fail", "status": status})
    body = send_callback(url, retry=retry)
    owned = {"x-ringback-owner": "scheduler", "x-ringback-dispatch": 2, "x-ringback-id": body["id"]}
    callback = await publisher.send(body, headers=owned)
    fact = await publisher.fact(callback, "callback.dispatch_failed")
    assert (fact["final"], fact["owner"], fact["dispatch"]) == (final, "scheduler", 2)
    assert fact["reason"] == text
    assert {fact["dispatch"] for fact in publisher.facts_of(callback)} == {2}
    assert {
        message.routing_key
        for message in publisher.fact_messages
        if callback in message.body.decode()
    } <= {"callback.attempt_failed", "callback.dispatch_failed"}
    assert not [
        each for each in await publisher.read_dead_letters() if callback in identities(each)
    ]


@pytest.mark.parametrize("retries", [0, 5])
async def test_row_30_a_failed_dispatch_reports_the_requested_delay(
    publisher: BrokerClient, receiver: Sandbox, retries: int
) -> None:
    url = await receiver.mailbox(behaviour={"kind": "fail", "status": 503, "retry_after": 600})
    soon = datetime.now(UTC) + timedelta(seconds=100)  # with retries, the dispatch expires first
    body = send_callback(url, retry={"quick_retries_count": retries}, expires_at=soon.isoformat())
    owned = {"x-ringback-owner": "scheduler", "x-ringback-dispatch": 1, "x-ringback-id": body["id"]}
    callback = await publisher.send(body, headers=owned)
    fact = await publisher.fact(callback, "callback.dispatch_failed")
    assert (fact["final"], fact["attempt"], fact["retry_after"]) == (False, 1, 600)


async def test_an_unreadable_message_of_the_scheduler_ends_in_a_failed_dispatch(
    publisher: BrokerClient,
) -> None:
    owned = {"x-ringback-owner": "scheduler", "x-ringback-id": "owned-nonsense"}
    await publisher.send(b"nonsense", headers=owned)
    fact = await publisher.fact("owned-nonsense", "callback.dispatch_failed")
    assert fact["final"] is True
    await publisher.dead_letter("owned-nonsense")


async def test_finding_b11_a_copied_owner_does_not_make_another_message_vanish(
    publisher: BrokerClient, receiver: Sandbox
) -> None:
    url = await receiver.mailbox(behaviour={"kind": "fail", "status": 410})
    copied = {
        "x-ringback-owner": "scheduler",
        "x-ringback-dispatch": 1,
        "x-ringback-id": "another-callback",
    }
    callback = await publisher.send(send_callback(url), headers=copied)
    await publisher.dead_letter(callback)
    fact = await publisher.fact(callback, "callback.dead")
    assert (fact["owner"], fact["dispatch"]) == (None, None)
