"""Postings become messages, on a real database with user lists over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.mailings.expansion import slice as slice_module
from shared.contracts.messages import SendEmail, SendSms
from tests.fakes.mailing import (
    Mailings,
    UserLists,
    counts,
    empty_mailings,
    posting,
    running_mailings,
    user,
    user_lists,
)
from tests.fakes.sandbox import running_sandbox
from tests.fakes.waiting import until


@pytest.fixture
async def url(database_url: str) -> str:
    return await empty_mailings(database_url)


@pytest.fixture
async def around(url: str) -> AsyncIterator[tuple[Mailings, UserLists]]:
    async with user_lists() as users, running_mailings(url, {"auth": users.url}) as it:
        yield it, users


async def test_e5_a_posting_becomes_one_message_per_recipient_and_channel(
    around: tuple[Mailings, UserLists],
) -> None:
    it, users = around
    users.users["all"] = [user(1), user(2, phone="+7 (900) 000-00-02"), user(3, email=None)]
    body = posting(delivery_type=["email", "sms"], expires_in="1 hour")

    id_ = await it.post(body, headers={"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"})
    status = await it.expand(id_)

    mails = [
        SendEmail.model_validate_json(m.body)
        for m in it.broker.sent
        if m.routing_key == "messages.email"
    ]
    texts = [
        SendSms.model_validate_json(m.body)
        for m in it.broker.sent
        if m.routing_key == "messages.sms"
    ]
    assert [mail.to for mail in mails] == ["user1@example.com", "user2@example.com"]
    assert [text.phone for text in texts] == ["79000000001", "79000000002", "79000000003"]
    assert {each.posting_id for each in (*mails, *texts)} == {str(id_)}
    assert {each.expires_at for each in (*mails, *texts)} == {status.expires_at}
    assert "http://auth/abcDe4" in mails[0].text
    for message in it.broker.sent:
        assert message.properties.headers is not None
        assert message.properties.headers["traceparent"].startswith("00-aaaa")
        assert f'"id":"{message.properties.headers["x-ringback-id"]}"' in message.body.decode()
    assert (status.status, status.pages, status.receivers) == ("sending", 1, 3)
    assert counts(status) == {"created": 5, "skipped": 1}
    assert status.skipped == {"no e-mail address": 1}


UUID_OF_NOBODY = "5f0c1f6e-8d0e-4b57-9a3d-0a8b5d5b7a11"
EXAMPLES: tuple[dict[str, Any], ...] = (
    {
        "from_event": "event_id",
        "receivers": "http://auth/api/v1/users/?is_active=True&email_notifications=True"
        "&page_number=1&page_size=500",
        "template": "email/new_movies.md",
        "delivery_type": ["email"],
        "template_context": {"movies": "http://fastapi/api/v1/movies/?new=True"},
    },
    {
        "from_event": "event_id",
        "receivers": f"http://auth/api/v1/users/?id={UUID_OF_NOBODY}",
        "template": "email/email_confirmation.md",
        "delivery_type": ["email"],
        "template_context": {"confirmation_link": "http://auth/abcDe4"},
    },
    {
        "from_event": "event_id",
        "receivers": f"http://auth/api/v1/users/?id={UUID_OF_NOBODY}",
        "template": "sms/phone_confirmation.md",
        "delivery_type": ["sms"],
        "expires_in": "120 sec",
        "template_context": {"secret_code": "1234"},
    },
)


@pytest.mark.parametrize("form", ["list", "results"])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: each["template"])
async def test_e5_every_published_example_reaches_the_users_who_enabled_it(
    url: str, example: dict[str, Any], form: str
) -> None:
    async with running_sandbox(users=1100) as outside:
        sources = {"auth": f"{outside.url}auth", "fastapi": f"{outside.url}fastapi"}
        all_users = await users_of(outside)
        channel = example["delivery_type"][0]
        subscribers = [each for each in all_users if wanted(each, channel, "new_movies")]
        receivers = example["receivers"].replace(UUID_OF_NOBODY, subscribers[0]["id"])
        async with running_mailings(url, sources) as it:
            id_ = await it.post(example | {"receivers": f"{receivers}&form={form}"})
            status = await it.expand(id_)
            sent = it.broker.bodies(id_)

    assert status.status == "sending", status
    if "id=" in receivers:
        subscribers = subscribers[:1]
    assert sorted(each["user_id"] for each in sent) == sorted(each["id"] for each in subscribers)
    literal = {"email": "http://auth/abcDe4", "sms": "1234"}[channel]
    assert all(literal in each["text"] for each in sent) or "movies" in example["template"]
    assert {each["to" if channel == "email" else "phone"] for each in sent} == {
        each["email" if channel == "email" else "phone"] for each in subscribers
    }


async def users_of(outside: Any) -> list[dict[str, Any]]:
    """Return every user of the sandbox."""
    pages = [
        await outside.get("/auth/api/v1/users/", page_number=number, page_size=1000)
        for number in (1, 2)
    ]
    return [each for found in pages for each in found]


def wanted(each: dict[str, Any], channel: str, kind: str) -> bool:
    """Return whether a user has enabled the message, decided independently of the product."""
    broken = ("Mars/Olympus_Mons", "MSK+3", "")
    return bool(
        each["is_active"]
        and each[f"{channel}_notifications"]
        and each["email" if channel == "email" else "phone"]
        and each["timezone"] not in broken
        and each["notifications"].get(kind, True)
    )


async def test_e5_a_single_user_is_a_page_of_one(around: tuple[Mailings, UserLists]) -> None:
    it, users = around
    users.responses["all", 1] = lambda: user(1)
    status = await it.expand(await it.post(posting()))
    assert (status.receivers, counts(status)["created"]) == (1, 1)
    assert users.requests == [("all", 1)]


async def test_e5_a_page_shorter_than_page_size_is_the_last(
    around: tuple[Mailings, UserLists],
) -> None:
    it, users = around
    users.users["all"] = [user(number) for number in range(20)]
    body = posting(receivers="http://auth/lists/all/?page_size=10&page_number=1")
    id_ = await it.post(body)
    status = await it.expand(id_)
    assert (status.pages, status.receivers) == (3, 20)  # the third is empty
    assert users.requests == [("all", 1), ("all", 2), ("all", 3)]
    assert sorted(it.broker.ids(id_).values()) == [1] * 20


async def test_a_user_who_is_listed_several_times_gets_one_message(
    around: tuple[Mailings, UserLists],
) -> None:
    it, users = around
    users.users["all"] = [user(1), user(1), user(2), user(1), user(3)]
    id_ = await it.post(posting(receivers="http://auth/lists/all/?page_size=3"))
    status = await it.expand(id_)
    assert list(it.broker.ids(id_).values()) == [1, 1, 1]
    assert (status.status, status.receivers, counts(status)["created"]) == ("sending", 5, 3)


async def test_a_large_page_is_added_in_batches(around: tuple[Mailings, UserLists]) -> None:
    it, users = around
    users.users["all"] = [user(number) for number in range(1300)]
    id_ = await it.post(posting(receivers="http://auth/lists/all/?page_size=5000"))
    status = await it.expand(id_)
    assert (status.pages, status.receivers, counts(status)["created"]) == (1, 1300, 1300)
    assert len(it.broker.ids(id_)) == 1300


async def test_an_invalid_user_is_skipped_with_a_reason(
    around: tuple[Mailings, UserLists],
) -> None:
    it, users = around
    users.users["all"] = [
        *(user(1), 7, {"name": "nobody"}, user(2, id=["x"])),
        *(user(3, timezone="Mars/Base"), user(4, is_active=False), user(5, id="\x00")),
    ]
    status = await it.expand(await it.post(posting()))
    assert (status.status, counts(status)["created"]) == ("sending", 1)
    wrong_id = "not a user: id: must be a text of 1 to 255 characters, or a number"
    assert status.skipped == {
        "not a user: not a JSON object": 1,
        "not a user: id: Field required": 1,
        wrong_id: 2,
        "unknown time zone 'Mars/Base'": 1,
        "inactive": 1,
    }


INVALID_PAGES: dict[str, tuple[Any, str]] = {
    "numbers": ([1, 2, 3], "no item is a user: not a user: not a JSON object"),
    "other objects": ([{"a": 1}], "no item is a user: not a user: id: Field required"),
    "an error": ({"detail": "no"}, "no item is a user: not a user: id: Field required"),
    "a text": ("users", "the response is not a list"),
    "null": (None, "the response is not a list"),
}


@pytest.mark.parametrize("kind", INVALID_PAGES)
async def test_an_invalid_page_fails_the_posting_with_a_reason(
    around: tuple[Mailings, UserLists], kind: str
) -> None:
    it, users = around
    response, reason = INVALID_PAGES[kind]
    users.responses["all", 2] = lambda: response
    users.users["all"] = [user(number) for number in range(10)]
    id_ = await it.post(posting(receivers="http://auth/lists/all/?page_size=5"))
    status = await it.expand(id_)
    assert status.status == "failed"
    assert f"receivers, page 2: {reason}" in (status.reason or "")
    assert len(it.broker.ids(id_)) == counts(status)["created"] == 5, "the first page is sent"


async def test_a_list_that_repeats_the_same_page_fails_the_posting(
    around: tuple[Mailings, UserLists],
) -> None:
    it, users = around
    users.responses["all", 0] = lambda: [user(number) for number in range(5)]
    id_ = await it.post(posting(receivers="http://auth/lists/all/?page_size=5"))
    status = await it.expand(id_)
    assert status.status == "failed"
    assert "Check that the list ends" in (status.reason or "")
    assert len(it.broker.sent) == 5


async def test_a_list_longer_than_the_maximum_fails_the_posting(url: str) -> None:
    async with running_sandbox() as outside:
        sources = {"auth": f"{outside.url}auth"}
        async with running_mailings(url, sources, max_receivers=450) as it:
            endless = "http://auth/api/v1/users/?endless=True&page_size=100"
            status = await it.expand(await it.post(posting(receivers=endless)))
    assert (status.status, status.receivers) == ("failed", 400)
    assert "more than 450 receivers" in (status.reason or "")


async def test_a_template_error_fails_the_posting_before_anything_is_sent(
    around: tuple[Mailings, UserLists],
) -> None:
    it, users = around
    for broken in (
        posting(template_context={}),
        posting(template="email/not_there.md"),
        posting(template="email/new_movies.md", template_context={"movies": "literal"}),
        posting(template="email/new_movies.md", template_context={"movies": [{"title": "x"}]}),
    ):
        status = await it.expand(await it.post(broken))
        assert (status.status, counts(status)["created"]) == ("failed", 0)
        assert status.reason
        assert "literal" not in status.reason
    assert not it.broker.sent
    assert not users.requests


async def test_the_data_of_a_template_is_fetched_once(
    around: tuple[Mailings, UserLists], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_module, "SLICE_DURATION", 0.0)  # one page per slice
    it, users = around
    users.users["all"] = [user(number) for number in range(20)]
    users.responses["movie", 0] = lambda: {"title": "Stalker", "url": "http://fastapi/1"}
    body = posting(
        receivers="http://auth/lists/all/?page_size=5",
        template="email/new_movies.md",
        template_context={"movies": ["http://auth/lists/movie/?page_number=1&page_size=1"] * 2},
    )
    id_ = await it.post(body)
    status = await it.expand(id_)
    assert (status.status, counts(status)["created"]) == ("sending", 20)
    assert users.requests.count(("movie", 1)) == 2
    assert all("Stalker" in each["text"] for each in it.broker.bodies(id_))


async def test_nothing_is_published_after_expires_in(around: tuple[Mailings, UserLists]) -> None:
    it, users = around
    users.users["all"] = [user(number) for number in range(19)]

    async def slow() -> Any:
        await until(lambda: it.broker.sent)
        it.clock.ahead = 121.0
        return users.users["all"][10:20]

    users.responses["all", 2] = slow
    body = posting(receivers="http://auth/lists/all/?page_size=10", expires_in="120 sec")
    late = await it.expand(await it.post(body, timestamp=1_700_000_000.0))
    assert users.requests == []
    id_ = await it.post(body)
    status = await it.expand(id_)

    assert (late.status, late.pages, len(it.broker.sent)) == ("expired", 0, 10)
    assert (status.status, status.pages) == ("expired", 1)
    assert counts(status) == {"created": 10, "expired": 9}
    assert {each["expires_at"] for each in it.broker.bodies(id_)} == {
        json.loads(status.model_dump_json())["expires_at"]
    }


async def test_small_postings_do_not_wait_for_a_huge_one(
    around: tuple[Mailings, UserLists], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_module, "SLICE_DURATION", 0.0)
    it, users = around
    users.users["huge"] = [user(number) for number in range(2000)]
    users.users["all"] = [user(1)]
    huge = await it.post(posting(receivers="http://auth/lists/huge/?page_size=10"))
    await it.expansion.run_once(1)
    small = [await it.post(posting()) for _ in range(3)]
    for _ in range(6):
        await it.expansion.run_once(1)

    assert [(await it.status(each)).status for each in small] == ["sending"] * 3
    assert (await it.status(huge)).pages in range(2, 5), "every other slice"


async def test_a_full_queue_pauses_only_the_postings_of_its_channel(
    around: tuple[Mailings, UserLists],
) -> None:
    it, users = around
    users.users["all"] = [user(1)]
    it.broker.full = {"messages.sms"}
    texts = await it.post(
        posting(
            delivery_type=["sms"],
            template="sms/phone_confirmation.md",
            template_context={"secret_code": "1234"},
        )
    )
    mail = await it.post(posting())
    for _ in range(2):
        await it.expansion.run_once(4)
    paused = await it.status(texts)
    assert (paused.status, paused.reason) == ("accepted", "too many messages wait in messages.sms")
    assert (await it.status(mail)).status == "sending"
    it.broker.full.clear()
    await it.make_due(texts)
    assert (await it.expand(texts)).reason is None


async def test_a_refused_message_is_published_again_with_the_same_id(
    around: tuple[Mailings, UserLists],
) -> None:
    it, users = around
    users.users["all"] = [user(number) for number in range(5)]
    it.broker.down = True
    id_ = await it.post(posting())
    expanding = asyncio.create_task(it.expand(id_))
    await until(lambda: it.broker.refused)
    assert (await it.status(id_)).pages == 0
    it.broker.down = False
    status = await expanding
    assert (status.status, len(it.broker.ids(id_)), status.pages) == ("sending", 5, 1)
