"""U1 to U4, N5: deliveries to the callbacks of users, on a real database."""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.subscriptions.deliveries.claims import CLAIM_LEASE, DISPATCH_LEASE, Lease
from shared.contracts.callback import SendCallback
from shared.contracts.requests import Failure, FailureCode
from shared.ids import uuid7
from tests.fakes.command import ringback
from tests.fakes.deliveries import Engine, running_engine
from tests.fakes.journal import empty_journal
from tests.fakes.scheduling import connected
from tests.fakes.system import SECRETS_KEY

URL = "https://bot.example.com/hook"


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[Engine]:
    async with running_engine(database_url) as engine:
        yield engine


async def user(engine: Engine, name: str = "ann", **registration: Any) -> tuple[int, str, str]:
    """Return the id, a token and the callback's secret of a new user."""
    id_ = await engine.users.register(name)
    token = await engine.users.sign_in(name)
    started = await engine.start(token, URL, **registration)
    return id_, token, started.secret


async def test_u1_u2_a_callback_gets_each_event_signed_and_with_its_sequence(
    engine: Engine,
) -> None:
    ann, token, secret = await user(engine)
    message = await engine.users.send(token, ann, "hi")
    assert await engine.statuses() == ["pending"]
    [sent] = await engine.dispatch()
    SendCallback.model_validate_json(engine.broker.sent[0].body)
    assert sent.url == URL
    assert sent.body["hmac_secret"] == [secret]
    assert sent.body["headers"] == {"x-ringback-sequence": "1"}
    assert sent.payload["type"] == "new_message"
    assert sent.payload["event"]["message_id"] == message.message_id
    assert sent.headers["x-ringback-id"] == sent.body["id"]
    await engine.settle(sent.delivered())
    assert await engine.statuses() == ["delivered"]
    assert await engine.dispatch() == []


async def test_u2_the_webhook_id_is_the_same_on_each_dispatch_and_differs_between_users(
    engine: Engine,
) -> None:
    ann, token, _ = await user(engine)
    bob, _, _ = await user(engine, "bob")
    for id_ in (ann, bob):
        await engine.users.send(token, id_)
    first = await engine.dispatch()
    await engine.expire_leases()
    second = await engine.dispatch()
    ids = [sent.body["id"] for sent in first]
    assert [sent.body["id"] for sent in second] == ids
    assert len(set(ids)) == 2
    assert [sent.headers["x-ringback-dispatch"] for sent in second] == [2, 2]


async def test_u1_the_same_url_again_gets_a_new_secret_and_no_deprecation(engine: Engine) -> None:
    _, token, first = await user(engine)
    request = uuid7().hex
    second = await engine.start(token, URL, message_id=request)
    assert second.secret != first
    assert await engine.start(token, URL, message_id=request) == second
    assert await engine.statuses() == []


async def test_u3_a_changed_url_is_reported_to_the_old_and_the_new_server(engine: Engine) -> None:
    ann, token, old_secret = await user(engine, ordered=True)
    new = "https://new.example.com/hook"
    new_secret = (await engine.start(token, new, ordered=True)).secret
    await engine.users.send(token, ann)
    to_old, to_new = await engine.dispatch()  # the message waits
    assert (to_old.url, to_old.body["hmac_secret"]) == (URL, [old_secret])
    assert (to_new.url, to_new.body["hmac_secret"]) == (new, [new_secret])
    expected = {"type": "callback_deprecated", "event": {"old": URL, "new": new}}
    assert to_old.payload == to_new.payload == expected
    await engine.settle(to_new.delivered())  # the old server may be gone
    [sent] = await engine.dispatch()
    assert sent.payload["type"] == "new_message"
    await engine.settle(to_old.failed(status=410, final=True), sent.delivered())
    assert await engine.statuses() == ["failed", "delivered", "delivered"]
    assert engine.disabled == []


async def test_u3_what_failed_at_the_old_url_is_due_at_the_new_one(engine: Engine) -> None:
    ann, token, _ = await user(engine)
    await engine.users.send(token, ann)
    [sent] = await engine.dispatch()
    await engine.settle(sent.attempt_failed())
    await engine.start(token, "https://new.example.com/")
    assert [sent.url for sent in await engine.dispatch()] == [
        "https://new.example.com/",
        URL,
        "https://new.example.com/",
    ]
    await engine.settle(sent.failed())  # of the old dispatch
    assert await engine.statuses() == ["dispatched"] * 3


async def test_u1_a_stopped_callback_gets_nothing_and_can_be_started_again(engine: Engine) -> None:
    ann, token, _ = await user(engine, ordered=True)
    await engine.users.send(token, ann)
    await engine.users.send(token, ann)
    assert (await engine("StopCallback", token_hash=token)).user_id == ann
    assert await engine.statuses() == ["cancelled"] * 2
    await engine.users.send(token, ann)
    assert await engine.dispatch() == []
    response = await engine("TestCallback", token_hash=token)
    assert isinstance(response, Failure)
    assert response.code is FailureCode.NOT_FOUND
    await engine.start(token, URL)
    await engine.users.send(token, ann)
    assert len(await engine.dispatch()) == 1


async def test_u1_a_test_event_does_not_wait_for_others(engine: Engine) -> None:
    ann, token, _ = await user(engine, ordered=True)
    await engine.users.send(token, ann)
    tested = await engine("TestCallback", token_hash=token)
    _, sent = await engine.dispatch()
    assert sent.payload["type"] == "test"
    assert sent.body["id"] == tested.webhook_id


async def test_u1_a_token_that_is_not_valid_and_a_pin_without_https_are_rejected(
    engine: Engine,
) -> None:
    _, token, _ = await user(engine)
    for response in (
        await engine.start("0" * 64, URL),
        await engine("StopCallback", token_hash="0" * 64),
        await engine("TestCallback", token_hash="0" * 64),
    ):
        assert response.code is FailureCode.UNAUTHORIZED
    pinned = await engine.start(token, "http://bot.example.com/", fingerprint="ab" * 32)
    assert pinned.code is FailureCode.INVALID
    await engine.start(token, URL, fingerprint=":".join(["AB"] * 32))
    await engine("TestCallback", token_hash=token)
    [sent] = await engine.dispatch()
    assert sent.body["fingerprint"] == "ab" * 32


async def test_n5_in_order_the_next_event_is_sent_when_the_one_before_has_ended(
    engine: Engine,
) -> None:
    ann, token, _ = await user(engine, ordered=True)
    for text in ("1", "2", "3"):
        await engine.users.send(token, ann, text)
    [first] = await engine.dispatch()
    await engine.settle(first.attempt_failed())
    await engine.settle(first.failed())
    assert await engine.dispatch() == []  # its main retry is later
    await engine.expire_leases()
    [again] = await engine.dispatch()
    assert again.payload == first.payload
    await engine.settle(again.delivered())
    [second] = await engine.dispatch()
    await engine.settle(second.failed(final=True))
    [third] = await engine.dispatch()
    texts = [sent.payload["event"]["text"] for sent in (first, second, third)]
    assert texts == ["1", "2", "3"]


async def test_n5_two_processes_never_have_two_events_of_an_ordered_callback_in_flight(
    engine: Engine,
) -> None:
    ann, token, _ = await user(engine, ordered=True)
    other = Engine(engine.database, engine.users)
    settling = asyncio.create_task(other.settler.run())
    for number in range(20):
        await engine.users.send(token, ann, str(number))
    texts = []
    for _ in range(20):
        claimed = await asyncio.gather(engine.dispatch(), other.dispatch())
        [sent] = [sent for each in claimed for sent in each]
        texts.append(sent.payload["event"]["text"])
        await asyncio.gather(engine.settle(sent.delivered()), other.settle(sent.delivered()))
    settling.cancel()
    assert texts == [str(number) for number in range(20)]


async def test_row_17_a_claim_that_was_not_published_is_due_soon_and_a_published_one_is_not(
    engine: Engine,
) -> None:
    ann, token, _ = await user(engine)
    await engine.users.send(token, ann)
    await engine.claims.claim(10)

    async def lease() -> float:
        row = await engine.database.fetchrow(
            "SELECT extract(epoch FROM due_at - now())::float8 AS s FROM subscriptions.deliveries"
        )
        return float(row["s"])

    assert 0 < await lease() <= CLAIM_LEASE
    await engine.expire_leases()
    await engine.dispatch()
    await engine.leases.drain(1)
    assert DISPATCH_LEASE - 60 < await lease() <= DISPATCH_LEASE


async def test_row_18_a_stale_lease_settles_nothing(engine: Engine) -> None:
    ann, token, _ = await user(engine)
    await engine.users.send(token, ann)
    [stale] = await engine.dispatch()
    await engine.expire_leases()
    [sent] = await engine.dispatch()
    lease = Lease(int(stale.headers["x-ringback-reference"]), 1)
    await engine.claims.release([lease], 0.0, "stale")
    await engine.claims.hold([lease])
    await engine.settle(stale.failed(final=True), stale.attempt_failed())
    assert await engine.statuses() == ["dispatched"]
    await engine.settle(sent.delivered())
    await engine.settle(sent.failed(final=True))
    assert await engine.statuses() == ["delivered"]


async def test_a_delivery_reported_by_an_earlier_dispatch_is_delivered(engine: Engine) -> None:
    ann, token, _ = await user(engine)
    await engine.users.send(token, ann)
    [first] = await engine.dispatch()
    await engine.expire_leases()
    await engine.dispatch()
    await engine.settle(first.delivered())
    assert await engine.statuses() == ["delivered"]


async def test_an_event_that_retention_has_deleted_fails(engine: Engine) -> None:
    ann, token, _ = await user(engine, ordered=True)
    await engine.users.send(token, ann)
    await engine.database.execute("DELETE FROM subscriptions.user_events")
    await engine.users.send(token, ann)
    assert await engine.dispatch() == []
    assert await engine.statuses() == ["failed", "pending"]


async def test_u4_n5_push_and_poll_share_a_position(engine: Engine) -> None:
    ann, token, _ = await user(engine, ack=True)
    other = await engine.users.sign_in("ann")
    for text in ("1", "2", "3", "4"):
        await engine.users.send(token, ann, text)
    first, second, third, _ = await engine.dispatch()
    await engine.settle(second.delivered())  # not contiguous
    assert await engine.users.texts(token) == ["1"]
    await engine.settle(first.delivered(), third.delivered())
    await engine.users.send(token, ann, "5")
    assert await engine.users.texts(token, limit=10) == ["4", "5"]
    assert (await engine.statuses())[-2:] == ["dispatched", "cancelled"]
    assert await engine.users.texts(other, limit=10) == ["1", "2", "3", "4", "5"]


async def test_finding_a16_reseal_replaces_the_key_of_endpoints_and_of_replaced_urls(
    engine: Engine, database_url: str
) -> None:
    ann, token, _ = await user(engine)
    await engine.start(token, "https://new.example.com/")
    await engine.endpoint(URL, headers=engine.cipher.encrypt(b"{}"), old_secret=None)
    async with connected(database_url):  # no callbacks
        pass
    await empty_journal(database_url)
    new_key = base64.b64encode(os.urandom(32)).decode()
    for resealed in (3, 0):
        output = await ringback(
            "secrets",
            "reseal",
            "--json",
            amqp_url=None,
            RINGBACK_DATABASE_URL=database_url,
            RINGBACK_SECRETS_KEY=f"{new_key},{SECRETS_KEY}",
        )
        assert (output.code, json.loads(output.out)["resealed"]) == (0, resealed)
    other = Engine(engine.database, engine.users, keys=new_key)
    await other.users.send(token, ann)
    sent = await other.dispatch()
    assert {each.url for each in sent} == {URL, "https://new.example.com/"}
    assert len(sent) == 3
