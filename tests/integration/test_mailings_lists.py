"""E5, C3, C4: the pages of a user list are read to their end, and each user gets one message."""

from collections import Counter
from typing import Any

import pytest

from services.mailings.expansion import slice as slice_module
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


@pytest.fixture
async def url(database_url: str) -> str:
    return await empty_mailings(database_url)


async def test_e5_a_single_user_is_a_page_of_one(setup: tuple[Mailings, UserLists]) -> None:
    mailings, lists = setup
    lists.responses["all", 1] = lambda: user(1)
    status = await mailings.expand(await mailings.post(posting()))
    assert (status.receivers, counts(status)["created"]) == (1, 1)
    assert lists.requests == [("all", 1)]


async def test_e5_a_page_shorter_than_page_size_is_the_last(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, lists = setup
    lists.users["all"] = [user(number) for number in range(20)]
    body = posting(receivers="http://auth/lists/all/?page_size=10&page_number=1")
    posting_id = await mailings.post(body)
    status = await mailings.expand(posting_id)
    assert (status.pages, status.receivers) == (3, 20)  # the third is empty
    assert lists.requests == [("all", 1), ("all", 2), ("all", 3)]
    assert sorted(mailings.broker.ids(posting_id).values()) == [1] * 20


async def test_a_user_who_is_listed_several_times_gets_one_message(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, lists = setup
    lists.users["all"] = [user(1), user(1), user(2), user(1), user(3)]
    posting_id = await mailings.post(posting(receivers="http://auth/lists/all/?page_size=3"))
    status = await mailings.expand(posting_id)
    assert list(mailings.broker.ids(posting_id).values()) == [1, 1, 1]
    assert (status.status, status.receivers, counts(status)["created"]) == ("sending", 5, 3)


async def test_a_large_page_is_added_in_batches(setup: tuple[Mailings, UserLists]) -> None:
    mailings, lists = setup
    lists.users["all"] = [user(number) for number in range(1300)]
    posting_id = await mailings.post(posting(receivers="http://auth/lists/all/?page_size=5000"))
    status = await mailings.expand(posting_id)
    assert (status.pages, status.receivers, counts(status)["created"]) == (1, 1300, 1300)
    assert len(mailings.broker.ids(posting_id)) == 1300


async def test_an_invalid_user_is_skipped_with_a_reason(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, lists = setup
    lists.users["all"] = [
        *(user(1), 7, {"name": "nobody"}, user(2, id=["x"])),
        *(user(3, timezone="Mars/Base"), user(4, is_active=False), user(5, id="\x00")),
    ]
    status = await mailings.expand(await mailings.post(posting()))
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
    setup: tuple[Mailings, UserLists], kind: str
) -> None:
    mailings, lists = setup
    response, reason = INVALID_PAGES[kind]
    lists.responses["all", 2] = lambda: response
    lists.users["all"] = [user(number) for number in range(10)]
    posting_id = await mailings.post(posting(receivers="http://auth/lists/all/?page_size=5"))
    status = await mailings.expand(posting_id)
    assert status.status == "failed"
    assert f"receivers, page 2: {reason}" in (status.reason or "")
    assert len(mailings.broker.ids(posting_id)) == counts(status)["created"] == 5, (
        "the first page is sent"
    )


async def test_a_list_that_repeats_the_same_page_fails_the_posting(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, lists = setup
    lists.responses["all", 0] = lambda: [user(number) for number in range(5)]
    posting_id = await mailings.post(posting(receivers="http://auth/lists/all/?page_size=5"))
    status = await mailings.expand(posting_id)
    assert status.status == "failed"
    assert "Check that the list ends" in (status.reason or "")
    assert len(mailings.broker.sent) == 5


async def test_a_list_longer_than_the_maximum_fails_the_posting(url: str) -> None:
    async with running_sandbox() as sandbox:
        sources = {"auth": f"{sandbox.url}auth"}
        async with running_mailings(url, sources, max_receivers=450) as mailings:
            endless = "http://auth/api/v1/users/?endless=True&page_size=100"
            status = await mailings.expand(await mailings.post(posting(receivers=endless)))
    assert (status.status, status.receivers) == ("failed", 400)
    assert "more than 450 receivers" in (status.reason or "")


@pytest.mark.parametrize("form", ["next", "relative next", "count"])
async def test_finding_c3_a_source_that_caps_its_pages_is_read_to_its_end(
    setup: tuple[Mailings, UserLists], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(slice_module, "SLICE_DURATION", 0.0)  # each page is a slice of its own
    mailings, lists = setup
    users = [user(number) for number in range(250)]
    for number in (1, 2, 3):
        page: dict[str, Any] = {"results": users[(number - 1) * 100 : number * 100]}
        path = f"/lists/all/?page_number={number + 1}&page_size=100"
        following = {"next": f"{lists.url}{path}", "relative next": path}.get(form)
        if following is None:
            page["count"] = len(users)
        else:
            page["next"] = following if number < 3 else None
        lists.responses["all", number] = lambda page=page: page  # type: ignore[misc]
    posting_id = await mailings.post(posting(receivers="http://auth/lists/all/?page_size=500"))
    status = await mailings.expand(posting_id)
    assert (status.status, status.pages, status.receivers) == ("sending", 3, 250)
    assert counts(status) == {"created": 250}


@pytest.mark.parametrize("count", [{}, {"count": 2}], ids=["next", "next and count"])
async def test_finding_c3_an_empty_page_with_next_does_not_end_the_list(
    setup: tuple[Mailings, UserLists], count: dict[str, int]
) -> None:
    """A source with cursors that filters its pages can send empty ones."""
    mailings, lists = setup
    for number, users in enumerate(([user(1)], [], [user(2)]), start=1):
        following = f"/lists/all/?page_number={number + 1}" if number < 3 else None
        page = {"results": users, "next": following, **count}
        lists.responses["all", number] = lambda page=page: page  # type: ignore[misc]
    status = await mailings.expand(await mailings.post(posting()))
    assert (status.status, status.reason) == ("sending", None)
    assert (status.pages, counts(status)) == (3, {"created": 2})


async def test_finding_c4_a_list_that_grows_at_its_front_reaches_every_user_once(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, lists = setup
    lists.users["all"] = [user(number) for number in range(20)]

    def second_page() -> list[dict[str, Any]]:
        lists.users["all"][:0] = [user(number) for number in range(100, 110)]
        del lists.responses["all", 2]
        return lists.users["all"][5:10]

    lists.responses["all", 2] = second_page
    posting_id = await mailings.post(posting(receivers="http://auth/lists/all/?page_size=5"))
    status = await mailings.expand(posting_id)

    assert (status.status, status.reason) == ("sending", None)
    messages = Counter(body["user_id"] for body in mailings.broker.bodies(posting_id))
    assert messages == Counter(f"user-{number}" for number in (*range(20), *range(105, 110)))


async def test_finding_c3_a_list_of_empty_pages_that_does_not_end_fails_the_posting(
    setup: tuple[Mailings, UserLists], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_module, "MAX_EMPTY_PAGES", 10)
    mailings, lists = setup
    lists.responses["all", 0] = lambda: {"results": [], "next": "/lists/all/?page_number=2"}
    status = await mailings.expand(await mailings.post(posting()))
    assert (status.status, status.pages) == ("failed", 10)
    assert "Check that the list ends" in (status.reason or "")


async def test_finding_c3_a_list_that_is_shorter_than_its_count_fails_the_posting(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, lists = setup
    lists.responses["all", 1] = lambda: {"results": [user(1)], "next": None, "count": 7}
    status = await mailings.expand(await mailings.post(posting()))
    assert status.status == "failed"
    assert status.reason == "receivers, page 1: the list ends before its count of 7 users"


async def test_finding_c6_the_author_of_an_object_is_the_recipient(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, lists = setup
    lists.responses["review", 0] = lambda: {"id": 7, "author": f"{lists.url}/lists/author/"}
    lists.responses["author", 0] = lambda: user(5)
    lists.users["all"] = [user(number) for number in range(10)]
    posting_id = await mailings.post(posting(receivers="http://auth/lists/review/"))
    assert counts(await mailings.expand(posting_id)) == {"created": 1}
    assert [body["user_id"] for body in mailings.broker.bodies(posting_id)] == ["user-5"]
