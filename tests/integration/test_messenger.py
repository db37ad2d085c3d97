"""U: users, tokens, messages and user events, on a real database."""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.subscriptions.endpoints.messages import EndpointMessages
from services.subscriptions.messenger.domain import NewEvent
from services.subscriptions.messenger.passwords import MAX_UNFINISHED
from services.subscriptions.messenger.store import MAX_PAGE_BYTES
from services.subscriptions.retention import Retention
from shared.amqp.rpc import failure_of
from shared.contracts.polls import MAX_ID, UserCursor, decode_user_cursor, encode_user_cursor
from shared.contracts.requests import Failure, FailureCode
from shared.errors import InfrastructureError
from shared.ids import uuid7
from tests.fakes.messenger import PASSWORD, Users, running_users


@pytest.fixture
async def users(database_url: str) -> AsyncIterator[Users]:
    async with running_users(database_url) as users:
        yield users


def code(response: object) -> FailureCode:
    assert isinstance(response, Failure), response
    return response.code


def retention(users: Users) -> Retention:
    return Retention(users.messenger, EndpointMessages(users.database), timedelta(days=7))


async def test_u2_u5_a_message_becomes_an_event_of_its_recipient(users: Users) -> None:
    ann, bob = await users.register("ann"), await users.register("bob")
    token = await users.sign_in("ann")
    sent = await users.send(token, bob, "hi")
    assert users.woken == [bob]
    [event] = (await users.read(await users.sign_in("bob"), limit=10)).events
    body = json.loads(event.event)
    assert event.type == "new_message"
    assert isinstance(body.pop("created_at"), int)
    assert body == {"message_id": sent.message_id, "to_id": bob, "from_id": ann, "text": "hi"}


async def test_a_repeat_wakes_because_the_first_process_may_have_died_before_it_did(
    users: Users,
) -> None:
    ann = await users.register("ann")
    token = await users.sign_in("ann")
    for _ in range(2):
        await users.send(token, ann, message_id="request")
    assert users.woken == [ann, ann]


async def test_u5_a_message_to_an_unknown_user_or_with_an_unknown_token_fails(users: Users) -> None:
    ann = await users.register("ann")
    token = await users.sign_in("ann")
    assert code(await users.send(token, ann + 1)) is FailureCode.NOT_FOUND
    assert code(await users.send("0" * 64, ann)) is FailureCode.UNAUTHORIZED


async def test_a_message_to_an_unknown_user_is_not_counted_as_a_dead_letter(users: Users) -> None:
    await users.register("ann")

    def dead_lettered() -> float | None:
        return REGISTRY.get_sample_value("ringback_user_events_total", {"outcome": "unknown_user"})

    before = dead_lettered()
    await users.send(await users.sign_in("ann"), 1 << 60)
    assert dead_lettered() == before


async def test_a_request_that_is_delivered_again_has_no_second_effect(users: Users) -> None:
    user = {"name": "ann", "password": PASSWORD}
    id_ = uuid7().hex
    first = await users("RegisterUser", message_id=id_, user=user)
    assert await users("RegisterUser", message_id=id_, user=user) == first
    assert code(await users("RegisterUser", user=user)) is FailureCode.CONFLICT
    token = await users.sign_in("ann")
    id_ = uuid7().hex
    sent = [await users.send(token, first.user_id, message_id=id_) for _ in range(2)]
    assert sent[0] == sent[1]
    assert await users.texts(token, limit=10) == ["hello"]


async def test_u6_a_token_remembers_its_position_and_a_new_one_continues(users: Users) -> None:
    await users.register("ann")
    bob = await users.register("bob")
    ann_token = await users.sign_in("ann")
    for number in range(5):
        await users.send(ann_token, bob, str(number))
    first = await users.sign_in("bob")
    assert await users.texts(first) == ["0"]
    assert await users.texts(first, limit=2) == ["1", "2"]
    second = await users.sign_in("bob")
    assert await users.texts(second) == ["3"]
    await users("SignOut", token_hash=second)
    assert code(await users.read(second)) is FailureCode.UNAUTHORIZED
    await users("SignOut", token_hash=first)
    assert await users.texts(await users.sign_in("bob"), limit=10) == ["4"]


async def test_u6_a_cursor_reads_again_and_must_be_of_this_user_and_not_in_the_future(
    users: Users,
) -> None:
    ann = await users.register("ann")
    token = await users.sign_in("ann")
    for number in range(3):
        await users.send(token, ann, str(number))
    page = await users.read(token, limit=2)
    cursor = page.events[0].cursor
    assert decode_user_cursor(cursor) == (ann, 1)
    for _ in range(2):
        assert await users.texts(token, cursor=cursor, limit=10) == ["1", "2"]
    assert await users.texts(token) == ["2"]
    last = await users.read(token, cursor=encode_user_cursor(UserCursor(ann, 3)))
    assert (last.events, last.next_cursor) == ([], encode_user_cursor(UserCursor(ann, 3)))
    for wrong in (UserCursor(ann, 4), UserCursor(ann + 1, 1), UserCursor(ann, MAX_ID + 1)):
        assert code(await users.read(token, cursor=encode_user_cursor(wrong))) == "invalid"
    for text in ("", "x", "MS4x!", "MS4x\n", "é"):
        assert code(await users.read(token, cursor=text)) == "invalid"


async def test_u5_a_wrong_password_and_an_unknown_name_are_rejected(users: Users) -> None:
    await users.register("ann")
    for name, password in (("ann", "wrong horse"), ("bob", PASSWORD), ("a" * 100, "")):
        response = await users("SignIn", name=name, password=password, token_hash="a" * 64)
        assert code(response) is FailureCode.UNAUTHORIZED


async def test_concurrent_messages_are_numbered_without_gaps(users: Users) -> None:
    ids = [await users.register(f"user{number}") for number in range(3)]
    token = await users.sign_in("user0")
    await asyncio.gather(*(users.send(token, ids[n % 3], str(n)) for n in range(90)))
    for number, id_ in enumerate(ids):
        page = await users.read(await users.sign_in(f"user{number}"), limit=100)
        cursors = [decode_user_cursor(event.cursor) for event in page.events]
        assert cursors == [(id_, sequence) for sequence in range(1, 31)]


async def test_an_expired_token_is_not_valid_and_its_position_is_kept(users: Users) -> None:
    ann = await users.register("ann")
    token, other = await users.sign_in("ann"), await users.sign_in("ann")
    for number in range(3):
        await users.send(other, ann, str(number))
    assert await users.texts(token, limit=2) == ["0", "1"]
    await users.database.execute(
        "UPDATE subscriptions.tokens SET expires_at = now() WHERE hash = $1", bytes.fromhex(token)
    )
    assert code(await users.read(token)) is FailureCode.UNAUTHORIZED
    assert code(await users.send(token, ann)) is FailureCode.UNAUTHORIZED
    assert await retention(users).run_once() == 1
    assert await users.texts(other, limit=10) == ["0", "1", "2"]
    await users("SignOut", token_hash=other)
    assert await users.texts(await users.sign_in("ann"), limit=10) == []


async def test_retention_deletes_the_oldest_events_and_numbers_continue(users: Users) -> None:
    ann = await users.register("ann")
    token = await users.sign_in("ann")
    for number in range(5):
        await users.send(token, ann, str(number))
    for statement in (
        (
            "UPDATE subscriptions.user_events SET created_at = now() - interval '8 days'"
            " WHERE sequence <= 3"
        ),
        (
            "UPDATE subscriptions.messages SET created_at = now() - interval '8 days'"
            " WHERE text::integer < 3"
        ),
    ):
        await users.database.execute(statement)
    assert await retention(users).run_once() == 6
    await users.send(token, ann, "5")
    page = await users.read(token, cursor=encode_user_cursor(UserCursor(ann, 1)), limit=10)
    assert [decode_user_cursor(event.cursor).sequence for event in page.events] == [4, 5, 6]
    assert await users.texts(token, limit=10) == ["3", "4", "5"]
    assert len(await users.database.fetch("SELECT id FROM subscriptions.messages")) == 3


async def test_large_events_make_a_page_shorter(users: Users) -> None:
    ann = await users.register("ann")
    events = [
        NewEvent(ann, str(number), "t", json.dumps({"text": f"{number}" * 200_000}))
        for number in range(9)
    ]
    for event in events * 3:
        await users.appender.append(replace(event, event_id=uuid7().hex))
    token = await users.sign_in("ann")
    sizes = []
    while page := await users.texts(token, limit=100):
        assert sum(map(len, page)) <= MAX_PAGE_BYTES + 200_000
        sizes.append(len(page))
    assert sum(sizes) == 27
    assert len(sizes) == 14  # of two events, and the last of one


async def test_a_sign_in_with_an_unknown_name_hashes_the_password_too(
    users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    await users.register("ann")
    salts = []

    def scrypt(password: bytes, **parameters: Any) -> bytes:
        salts.append(parameters["salt"])
        return real(password, **parameters)

    real = hashlib.scrypt
    monkeypatch.setattr(hashlib, "scrypt", scrypt)
    for name in ("ann", "bob"):
        response = await users("SignIn", name=name, password="wrong", token_hash="a" * 64)
        assert code(response) is FailureCode.UNAUTHORIZED
    assert len(salts) == 2


@pytest.mark.slow
async def test_a_flood_of_sign_ins_is_rejected_and_ends(users: Users) -> None:
    async def sign_in() -> FailureCode:
        return code(await users("SignIn", name="x", password="wrong", token_hash="a" * 64))

    async def with_context() -> FailureCode:
        try:
            return await sign_in()
        except InfrastructureError as error:
            return failure_of(error).code

    codes = Counter(await asyncio.gather(*(with_context() for _ in range(3 * MAX_UNFINISHED))))
    assert codes[FailureCode.UNAVAILABLE] > 0
    assert codes[FailureCode.UNAUTHORIZED] >= MAX_UNFINISHED
    assert await sign_in() is FailureCode.UNAUTHORIZED


async def test_u4_polls_of_one_token_at_the_same_time_share_the_events(users: Users) -> None:
    ann = await users.register("ann")
    token = await users.sign_in("ann")
    await asyncio.gather(*(users.send(token, ann, str(number)) for number in range(40)))
    pages = await asyncio.gather(*(users.texts(token, limit=3) for _ in range(20)))
    assert sorted(int(text) for page in pages for text in page) == list(range(40))


async def test_a_batch_of_large_events_is_appended_in_parts(users: Users) -> None:
    ann = await users.register("ann")
    large = json.dumps({"text": "x" * 250_000})
    events = [NewEvent(ann, str(number), "t", large) for number in range(40)]
    await asyncio.gather(*map(users.appender.append, events))
    rows = await users.database.fetch(
        "SELECT count(*) FROM subscriptions.user_events GROUP BY xmin::text"
    )
    assert len(rows) >= 3
    assert sum(row["count"] for row in rows) == 40
    assert users.woken.count(ann) == len(rows)
