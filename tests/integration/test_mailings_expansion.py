"""Postings become messages: on a real database, with lists of users over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.mailings.expansion import slice as turn
from shared.contracts.messages import SendEmail, SendSms
from tests.fakes.mailing import Lists, Mailings, counts, emptied, lists, mailings, posting, user
from tests.fakes.sandbox import sandbox
from tests.fakes.waiting import until


@pytest.fixture
async def url(database_url: str) -> str:
    return await emptied(database_url)


@pytest.fixture
async def around(url: str) -> AsyncIterator[tuple[Mailings, Lists]]:
    async with lists() as users, mailings(url, {"auth": users.url}) as it:
        yield it, users


async def test_e5_a_posting_becomes_a_message_for_each_receiver_and_way(
    around: tuple[Mailings, Lists],
) -> None:
    it, users = around
    users.people["all"] = [user(1), user(2, phone="+7 (900) 000-00-02"), user(3, email=None)]
    body = posting(delivery_type=["email", "sms"], expires_in="1 hour")

    id_ = await it.post(body, headers={"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"})
    status = await it.expand(id_)

    mails = [
        SendEmail.model_validate_json(m.body)
        for m in it.queues.sent
        if m.routing_key == "messages.email"
    ]
    texts = [
        SendSms.model_validate_json(m.body)
        for m in it.queues.sent
        if m.routing_key == "messages.sms"
    ]
    assert [mail.to for mail in mails] == ["user1@example.com", "user2@example.com"]
    assert [text.phone for text in texts] == ["79000000001", "79000000002", "79000000003"]
    assert {each.posting_id for each in (*mails, *texts)} == {str(id_)}
    assert {each.expires_at for each in (*mails, *texts)} == {status.expires_at}
    assert "http://auth/abcDe4" in mails[0].text
    for message in it.queues.sent:
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
async def test_e5_every_example_of_the_interfaces_reaches_who_wants_it(
    url: str, example: dict[str, Any], form: str
) -> None:
    async with sandbox(users=1100) as outside:
        sources = {"auth": f"{outside.url}auth", "fastapi": f"{outside.url}fastapi"}
        everybody = await users_of(outside)
        channel = example["delivery_type"][0]
        ticked = [each for each in everybody if wanted(each, channel, "new_movies")]
        receivers = example["receivers"].replace(UUID_OF_NOBODY, ticked[0]["id"])
        async with mailings(url, sources) as it:
            id_ = await it.post(example | {"receivers": f"{receivers}&form={form}"})
            status = await it.expand(id_)
            sent = it.queues.bodies(id_)

    assert status.status == "sending", status
    if "id=" in receivers:
        ticked = ticked[:1]
    assert sorted(each["user_id"] for each in sent) == sorted(each["id"] for each in ticked)
    literal = {"email": "http://auth/abcDe4", "sms": "1234"}[channel]
    assert all(literal in each["text"] for each in sent) or "movies" in example["template"]
    assert {each["to" if channel == "email" else "phone"] for each in sent} == {
        each["email" if channel == "email" else "phone"] for each in ticked
    }


async def users_of(outside: Any) -> list[dict[str, Any]]:
    """Every user of the sandbox."""
    pages = [
        await outside.get("/auth/api/v1/users/", page_number=number, page_size=1000)
        for number in (1, 2)
    ]
    return [each for found in pages for each in found]


def wanted(each: dict[str, Any], channel: str, kind: str) -> bool:
    """Whether a user of the sandbox wants it, said another way than the product does."""
    broken = ("Mars/Olympus_Mons", "MSK+3", "")
    return bool(
        each["is_active"]
        and each[f"{channel}_notifications"]
        and each["email" if channel == "email" else "phone"]
        and each["timezone"] not in broken
        and each["notifications"].get(kind, True)
    )


async def test_e5_a_single_user_is_a_page_of_one(around: tuple[Mailings, Lists]) -> None:
    it, users = around
    users.answers["all", 1] = lambda: user(1)
    status = await it.expand(await it.post(posting()))
    assert (status.receivers, counts(status)["created"]) == (1, 1)
    assert users.asked == [("all", 1)]


async def test_e5_reading_ends_at_a_page_shorter_than_page_size(
    around: tuple[Mailings, Lists],
) -> None:
    it, users = around
    users.people["all"] = [user(number) for number in range(20)]
    body = posting(receivers="http://auth/lists/all/?page_size=10&page_number=1")
    id_ = await it.post(body)
    status = await it.expand(id_)
    assert (status.pages, status.receivers) == (3, 20)  # the third is empty
    assert users.asked == [("all", 1), ("all", 2), ("all", 3)]
    assert sorted(it.queues.ids(id_).values()) == [1] * 20


async def test_a_user_who_stands_there_several_times_gets_it_once(
    around: tuple[Mailings, Lists],
) -> None:
    it, users = around
    users.people["all"] = [user(1), user(1), user(2), user(1), user(3)]
    id_ = await it.post(posting(receivers="http://auth/lists/all/?page_size=3"))
    status = await it.expand(id_)
    assert list(it.queues.ids(id_).values()) == [1, 1, 1]
    assert (status.status, status.receivers, counts(status)["created"]) == ("sending", 5, 3)


async def test_a_page_of_many_users_is_written_in_parts(around: tuple[Mailings, Lists]) -> None:
    it, users = around
    users.people["all"] = [user(number) for number in range(1300)]
    id_ = await it.post(posting(receivers="http://auth/lists/all/?page_size=5000"))
    status = await it.expand(id_)
    assert (status.pages, status.receivers, counts(status)["created"]) == (1, 1300, 1300)
    assert len(it.queues.ids(id_)) == 1300


async def test_what_is_no_user_is_skipped_with_the_reason_and_the_rest_goes_on(
    around: tuple[Mailings, Lists],
) -> None:
    it, users = around
    users.people["all"] = [
        *(user(1), 7, {"name": "nobody"}, user(2, id=["x"])),
        *(user(3, timezone="Mars/Base"), user(4, is_active=False), user(5, id="\x00")),
    ]
    status = await it.expand(await it.post(posting()))
    assert (status.status, counts(status)["created"]) == ("sending", 1)
    wrong_id = "not a user: id: must be a text of 1 to 255 characters, or a number"
    assert status.skipped == {
        "not a user: no JSON object": 1,
        "not a user: id: Field required": 1,
        wrong_id: 2,
        "unknown time zone 'Mars/Base'": 1,
        "inactive": 1,
    }


NONSENSE: dict[str, tuple[Any, str]] = {
    "numbers": ([1, 2, 3], "nothing in it is a user: not a user: no JSON object"),
    "other objects": ([{"a": 1}], "nothing in it is a user: not a user: id: Field required"),
    "an error": ({"detail": "no"}, "nothing in it is a user: not a user: id: Field required"),
    "a text": ("users", "the answer is no list"),
    "null": (None, "the answer is no list"),
}


@pytest.mark.parametrize("kind", NONSENSE)
async def test_a_list_of_nonsense_fails_its_posting_and_says_why(
    around: tuple[Mailings, Lists], kind: str
) -> None:
    it, users = around
    answer, reason = NONSENSE[kind]
    users.answers["all", 2] = lambda: answer
    users.people["all"] = [user(number) for number in range(10)]
    id_ = await it.post(posting(receivers="http://auth/lists/all/?page_size=5"))
    status = await it.expand(id_)
    assert status.status == "failed"
    assert f"receivers, page 2: {reason}" in (status.reason or "")
    assert len(it.queues.ids(id_)) == counts(status)["created"] == 5, "the page before stands"


async def test_a_list_that_gives_the_same_page_for_ever_is_found_out(
    around: tuple[Mailings, Lists],
) -> None:
    it, users = around
    users.answers["all", 0] = lambda: [user(number) for number in range(5)]
    id_ = await it.post(posting(receivers="http://auth/lists/all/?page_size=5"))
    status = await it.expand(id_)
    assert status.status == "failed"
    assert "without end" in (status.reason or "")
    assert len(it.queues.sent) == 5


async def test_a_list_with_ever_new_users_ends_at_the_most_receivers(url: str) -> None:
    async with sandbox() as outside:
        sources = {"auth": f"{outside.url}auth"}
        async with mailings(url, sources, most_receivers=450) as it:
            endless = "http://auth/api/v1/users/?endless=True&page_size=100"
            status = await it.expand(await it.post(posting(receivers=endless)))
    assert (status.status, status.receivers) == ("failed", 400)
    assert "more than 450 receivers" in (status.reason or "")


async def test_a_template_error_fails_the_posting_before_anything_is_sent(
    around: tuple[Mailings, Lists],
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
    assert not it.queues.sent
    assert not users.asked


async def test_the_context_is_fetched_once_a_posting(
    around: tuple[Mailings, Lists], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "LONGEST", 0.0)  # a turn for each page
    it, users = around
    users.people["all"] = [user(number) for number in range(20)]
    users.answers["movie", 0] = lambda: {"title": "Stalker", "url": "http://fastapi/1"}
    body = posting(
        receivers="http://auth/lists/all/?page_size=5",
        template="email/new_movies.md",
        template_context={"movies": ["http://auth/lists/movie/?page_number=1&page_size=1"] * 2},
    )
    id_ = await it.post(body)
    status = await it.expand(id_)
    assert (status.status, counts(status)["created"]) == ("sending", 20)
    assert users.asked.count(("movie", 1)) == 2
    assert all("Stalker" in each["text"] for each in it.queues.bodies(id_))


async def test_nothing_is_given_out_after_expires_in(around: tuple[Mailings, Lists]) -> None:
    it, users = around
    users.people["all"] = [user(number) for number in range(19)]

    async def slow() -> Any:
        await until(lambda: it.queues.sent)
        it.clock.ahead = 121.0
        return users.people["all"][10:20]

    users.answers["all", 2] = slow
    body = posting(receivers="http://auth/lists/all/?page_size=10", expires_in="120 sec")
    late = await it.expand(await it.post(body, timestamp=1_700_000_000.0))
    assert users.asked == []
    id_ = await it.post(body)
    status = await it.expand(id_)

    assert (late.status, late.pages, len(it.queues.sent)) == ("expired", 0, 10)
    assert (status.status, status.pages) == ("expired", 1)
    assert counts(status) == {"created": 10, "expired": 9}
    assert {each["expires_at"] for each in it.queues.bodies(id_)} == {
        json.loads(status.model_dump_json())["expires_at"]
    }


async def test_other_postings_advance_beside_a_huge_one(
    around: tuple[Mailings, Lists], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "LONGEST", 0.0)
    it, users = around
    users.people["huge"] = [user(number) for number in range(2000)]
    users.people["all"] = [user(1)]
    huge = await it.post(posting(receivers="http://auth/lists/huge/?page_size=10"))
    await it.expansion.run_once(1)
    small = [await it.post(posting()) for _ in range(3)]
    for _ in range(6):
        await it.expansion.run_once(1)

    assert [(await it.status(each)).status for each in small] == ["sending"] * 3
    assert (await it.status(huge)).pages in range(2, 5), "every other turn"


async def test_a_full_queue_holds_back_who_would_fill_it_and_nobody_else(
    around: tuple[Mailings, Lists],
) -> None:
    it, users = around
    users.people["all"] = [user(1)]
    it.queues.full = {"messages.sms"}
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
    held = await it.status(texts)
    assert (held.status, held.reason) == ("accepted", "enough messages wait in messages.sms")
    assert (await it.status(mail)).status == "sending"
    it.queues.full.clear()
    await it.due(texts)
    assert (await it.expand(texts)).reason is None


async def test_what_the_broker_refuses_is_published_again_under_the_same_id(
    around: tuple[Mailings, Lists],
) -> None:
    it, users = around
    users.people["all"] = [user(number) for number in range(5)]
    it.queues.down = True
    id_ = await it.post(posting())
    turns = asyncio.create_task(it.expand(id_))
    await until(lambda: it.queues.refused)
    assert (await it.status(id_)).pages == 0
    it.queues.down = False
    status = await turns
    assert (status.status, len(it.queues.ids(id_)), status.pages) == ("sending", 5, 1)
