"""Postings become messages, on a real database with user lists over HTTP."""

import asyncio
import json
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
)
from tests.fakes.sandbox import running_sandbox
from tests.fakes.waiting import until


@pytest.fixture
async def url(database_url: str) -> str:
    return await empty_mailings(database_url)


async def test_e5_a_posting_becomes_one_message_per_recipient_and_channel(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, lists = setup
    lists.users["all"] = [user(1), user(2, phone="+7 (900) 000-00-02"), user(3, email=None)]
    body = posting(delivery_type=["email", "sms"], expires_in="1 hour")

    posting_id = await mailings.post(
        body, headers={"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}
    )
    status = await mailings.expand(posting_id)

    mails = [
        SendEmail.model_validate_json(m.body)
        for m in mailings.broker.sent
        if m.routing_key == "messages.email"
    ]
    texts = [
        SendSms.model_validate_json(m.body)
        for m in mailings.broker.sent
        if m.routing_key == "messages.sms"
    ]
    assert [mail.to for mail in mails] == ["user1@example.com", "user2@example.com"]
    assert [text.phone for text in texts] == ["79000000001", "79000000002", "79000000003"]
    assert {each.posting_id for each in (*mails, *texts)} == {str(posting_id)}
    assert {each.expires_at for each in (*mails, *texts)} == {status.expires_at}
    assert "ann@example.com" in mails[0].text
    for message in mailings.broker.sent:
        assert message.properties.headers is not None
        assert message.properties.headers["traceparent"].startswith("00-aaaa")
        assert f'"id":"{message.properties.headers["x-ringback-id"]}"' in message.body.decode()
    assert (status.status, status.pages, status.receivers) == ("sending", 1, 3)
    assert counts(status) == {"created": 5, "skipped": 1}
    assert status.skipped == {"no e-mail address": 1}


UNKNOWN_USER = "5f0c1f6e-8d0e-4b57-9a3d-0a8b5d5b7a11"
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
        "receivers": f"http://auth/api/v1/users/?id={UNKNOWN_USER}",
        "template": "email/email_confirmation.md",
        "delivery_type": ["email"],
        "template_context": {"confirmation_link": "http://auth/abcDe4"},
    },
    {
        "from_event": "event_id",
        "receivers": f"http://auth/api/v1/users/?id={UNKNOWN_USER}",
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
    async with running_sandbox(users=1100) as sandbox:
        sources = {"auth": f"{sandbox.url}auth", "fastapi": f"{sandbox.url}fastapi"}
        all_users = await all_users_of(sandbox)
        channel = example["delivery_type"][0]
        subscribers = [each for each in all_users if is_enabled(each, channel, "new_movies")]
        receivers = example["receivers"].replace(UNKNOWN_USER, subscribers[0]["id"])
        async with running_mailings(url, sources) as mailings:
            posting_id = await mailings.post(example | {"receivers": f"{receivers}&form={form}"})
            status = await mailings.expand(posting_id)
            sent = mailings.broker.bodies(posting_id)

    assert status.status == "sending", status
    if "id=" in receivers:
        subscribers = subscribers[:1]
    assert sorted(each["user_id"] for each in sent) == sorted(each["id"] for each in subscribers)
    literal = {"email": "http://auth/abcDe4", "sms": "1234"}[channel]
    assert all(literal in each["text"] for each in sent) or "movies" in example["template"]
    assert {each["to" if channel == "email" else "phone"] for each in sent} == {
        each["email" if channel == "email" else "phone"] for each in subscribers
    }


async def all_users_of(sandbox: Any) -> list[dict[str, Any]]:
    """Return every user of the sandbox."""
    pages = [
        await sandbox.get("/auth/api/v1/users/", page_number=number, page_size=1000)
        for number in (1, 2)
    ]
    return [each for found in pages for each in found]


def is_enabled(each: dict[str, Any], channel: str, kind: str) -> bool:
    """Return whether a user has enabled the message, decided independently of the product."""
    broken = ("Mars/Olympus_Mons", "MSK+3", "")
    return bool(
        each["is_active"]
        and each[f"{channel}_notifications"]
        and each["email" if channel == "email" else "phone"]
        and each["timezone"] not in broken
        and each["notifications"].get(kind, True)
    )


async def test_a_template_error_fails_the_posting_before_anything_is_sent(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, lists = setup
    for broken in (
        posting(template_context={}),
        posting(template="email/not_there.md"),
        posting(template="email/new_movies.md", template_context={"movies": "literal"}),
        posting(template="email/new_movies.md", template_context={"movies": [{"title": "x"}]}),
    ):
        status = await mailings.expand(await mailings.post(broken))
        assert (status.status, counts(status)["created"]) == ("failed", 0)
        assert status.reason
        assert "literal" not in status.reason
    assert not mailings.broker.sent
    assert not lists.requests


async def test_the_data_of_a_template_is_fetched_once(
    setup: tuple[Mailings, UserLists], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_module, "SLICE_DURATION", 0.0)  # one page per slice
    mailings, lists = setup
    lists.users["all"] = [user(number) for number in range(20)]
    lists.responses["movie", 0] = lambda: {"title": "Stalker", "url": "http://fastapi/1"}
    body = posting(
        receivers="http://auth/lists/all/?page_size=5",
        template="email/new_movies.md",
        template_context={"movies": ["http://auth/lists/movie/?page_number=1&page_size=1"] * 2},
    )
    posting_id = await mailings.post(body)
    status = await mailings.expand(posting_id)
    assert (status.status, counts(status)["created"]) == ("sending", 20)
    assert lists.requests.count(("movie", 1)) == 2
    assert all("Stalker" in each["text"] for each in mailings.broker.bodies(posting_id))


async def test_nothing_is_published_after_expires_in(setup: tuple[Mailings, UserLists]) -> None:
    mailings, lists = setup
    lists.users["all"] = [user(number) for number in range(19)]

    async def slow() -> Any:
        await until(lambda: mailings.broker.sent)
        mailings.clock.offset = 121.0
        return lists.users["all"][10:20]

    lists.responses["all", 2] = slow
    body = posting(receivers="http://auth/lists/all/?page_size=10", expires_in="120 sec")
    expired = await mailings.expand(await mailings.post(body, timestamp=1_700_000_000.0))
    assert lists.requests == []
    posting_id = await mailings.post(body)
    status = await mailings.expand(posting_id)

    assert (expired.status, expired.pages, len(mailings.broker.sent)) == ("expired", 0, 10)
    assert (status.status, status.pages) == ("expired", 1)
    assert counts(status) == {"created": 10, "expired": 9}
    assert {each["expires_at"] for each in mailings.broker.bodies(posting_id)} == {
        json.loads(status.model_dump_json())["expires_at"]
    }


async def test_small_postings_do_not_wait_for_a_huge_one(
    setup: tuple[Mailings, UserLists], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_module, "SLICE_DURATION", 0.0)
    mailings, lists = setup
    lists.users["huge"] = [user(number) for number in range(2000)]
    lists.users["all"] = [user(1)]
    huge = await mailings.post(posting(receivers="http://auth/lists/huge/?page_size=10"))
    await mailings.expansion.run_once(1)
    small = [await mailings.post(posting()) for _ in range(3)]
    for _ in range(3):
        await mailings.expansion.run_once(1)

    assert [(await mailings.status(each)).status for each in small] == ["sending"] * 3
    assert (await mailings.status(huge)).pages == 4, "one page in each slice"


async def test_a_full_queue_pauses_only_the_postings_of_its_channel(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, lists = setup
    lists.users["all"] = [user(1)]
    mailings.broker.full = {"messages.sms.urgent"}
    texts = await mailings.post(
        posting(
            delivery_type=["sms"],
            template="sms/phone_confirmation.md",
            template_context={"secret_code": "1234"},
        )
    )
    mail = await mailings.post(posting())
    for _ in range(2):
        await mailings.expansion.run_once(4)
    paused = await mailings.status(texts)
    assert paused.status == "accepted"
    assert paused.reason == "too many messages wait in messages.sms.urgent"
    assert (await mailings.status(mail)).status == "sending"
    mailings.broker.full.clear()
    await mailings.make_due(texts)
    assert (await mailings.expand(texts)).reason is None


async def test_finding_c19_thousands_of_small_postings_with_a_full_queue_are_checked_more_rarely(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, lists = setup
    lists.users["all"] = [user(number) for number in range(3)]
    mailings.broker.full = {"messages.email"}
    new, old = await mailings.post(posting()), await mailings.post(posting())
    list_ = await mailings.post(posting(receivers="http://auth/lists/all/?page_size=1"))
    await mailings.database.execute(
        "UPDATE mailings.postings SET accepted_at = now() - interval '1 hour' WHERE id <> $1", new
    )
    await mailings.database.execute(
        "UPDATE mailings.postings SET is_list = true WHERE id = $1", list_
    )

    await mailings.expansion.run_once(4)

    rows = await mailings.database.fetch(
        "SELECT id, extract(epoch FROM due_at - now()) AS delay FROM mailings.postings"
    )
    delays = {row["id"]: row["delay"] for row in rows}
    assert max(delays[new], delays[list_]) <= slice_module.FULL_QUEUE_DELAY
    assert slice_module.FULL_QUEUE_DELAY < delays[old] <= slice_module.MAX_FULL_QUEUE_DELAY


REQUIRED: dict[str, Any] = {
    "template": "email/email_confirmation.md",
    "template_context": {"confirmation_link": "http://auth/abcDe4"},
}


@pytest.mark.parametrize(
    ("fields", "queue"),
    [
        ({}, "messages.email"),
        ({"priority": "urgent"}, "messages.email.urgent"),
        (REQUIRED, "messages.email.urgent"),
        (REQUIRED | {"priority": "bulk"}, "messages.email"),
    ],
)
async def test_n9_finding_c5_a_posting_has_the_priority_of_its_template_or_its_own(
    setup: tuple[Mailings, UserLists], fields: dict[str, Any], queue: str
) -> None:
    mailings, lists = setup
    lists.users["all"] = [user(1)]
    await mailings.expand(await mailings.post(posting(**fields)))
    assert [message.routing_key for message in mailings.broker.sent] == [queue]


@pytest.mark.parametrize(("priority", "flags"), [("urgent", "01"), ("bulk", "00")])
async def test_n14_a_trace_has_no_spans_for_each_message_of_a_bulk_posting(
    setup: tuple[Mailings, UserLists], priority: str, flags: str
) -> None:
    mailings, lists = setup
    lists.users["all"] = [user(1)]
    context = f"00-{'a' * 32}-{'b' * 16}-"
    posted = await mailings.post(
        posting(priority=priority), headers={"traceparent": f"{context}01"}
    )
    await mailings.expand(posted)
    [message] = mailings.broker.sent
    assert message.properties.headers is not None
    assert message.properties.headers["traceparent"] == context + flags


async def test_n9_finding_c5_urgent_postings_are_expanded_first_and_not_paused_by_a_full_bulk_queue(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, lists = setup
    lists.users["all"] = [user(1)]
    bulk = [await mailings.post(posting()) for _ in range(3)]
    urgent = await mailings.post(posting(priority="urgent"))
    assert await mailings.expansion.run_once(1) == 1
    assert (await mailings.status(urgent)).status == "sending"
    mailings.broker.full = {"messages.email"}
    later = await mailings.post(posting(priority="urgent"))
    assert await mailings.expansion.run_once(4, only_urgent=True) == 1
    assert (await mailings.status(later)).status == "sending"
    assert {(await mailings.status(each)).status for each in bulk} == {"accepted"}


async def test_finding_c8_a_required_message_reaches_users_who_have_not_opted_in(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, lists = setup
    lists.users["all"] = [user(1, is_active=False, email_notifications=False)]
    status = await mailings.expand(await mailings.post(posting(**REQUIRED)))
    assert counts(status) == {"created": 1}


async def test_a_refused_message_is_published_again_with_the_same_id(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, lists = setup
    lists.users["all"] = [user(number) for number in range(5)]
    mailings.broker.refuses_all = True
    posting_id = await mailings.post(posting())
    expanding = asyncio.create_task(mailings.expand(posting_id))
    await until(lambda: mailings.broker.refused)
    assert (await mailings.status(posting_id)).pages == 0
    mailings.broker.refuses_all = False
    status = await expanding
    assert (status.status, len(mailings.broker.ids(posting_id)), status.pages) == ("sending", 5, 1)
