"""Who gets a message (E4), where pages are, what facts change: pure."""

from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from services.mailings.domain import (
    InvalidPostingError,
    PageUrls,
    Skip,
    address,
    message_id,
    page,
    posting_id,
    settled,
    state,
    stored,
    user_id,
)
from services.mailings.messages import Addressee
from services.mailings.settings import MailingsSettings
from shared.contracts.messages import EmailAddress, Phone
from shared.contracts.posting_requests import MessageState
from shared.registry import CHANNELS
from tests.fakes.mailing import user

KIND = "new_movies"
ADDRESS: dict[str, TypeAdapter[str]] = {
    "email": TypeAdapter(EmailAddress),
    "sms": TypeAdapter(Phone),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("fields", "by_email", "by_sms"),
    [
        ({}, None, None),
        ({"is_active": False}, "inactive", "inactive"),
        ({"is_active": "true"}, "inactive", "inactive"),
        ({"email_notifications": False}, "email not wanted", None),
        ({"email_notifications": None}, "email not wanted", None),
        ({"sms_notifications": False}, None, "sms not wanted"),
        ({"sms_notifications": 1}, None, "sms not wanted"),
        ({"notifications": {KIND: False}}, f"{KIND} not wanted", f"{KIND} not wanted"),
        ({"notifications": {KIND: True}}, None, None),
        ({"notifications": {"other": False}}, None, None),
        ({"notifications": None}, None, None),
        ({"email": None}, "no e-mail address", None),
        ({"email": ""}, "no e-mail address", None),
        ({"email": "user@"}, "wrong e-mail address", None),
        ({"email": "a@b.c\r\nBcc: x@y.z"}, "wrong e-mail address", None),
        ({"email": ["a@b.com"]}, "wrong e-mail address", None),
        ({"phone": None}, None, "no phone"),
        ({"phone": "12"}, None, "wrong phone"),
        ({"phone": "+7 (900) 123-45-67"}, None, None),
        ({"phone": 79001234567}, None, None),
        ({"timezone": None}, None, None),
        ({"timezone": "Mars/Base"}, *["unknown time zone 'Mars/Base'"] * 2),
        ({"timezone": ""}, *["unknown time zone ''"] * 2),
        ({"timezone": 7}, *["unknown time zone that is no text"] * 2),
    ],
)
def test_e4_only_who_ticked_this_way_and_this_kind_gets_it(
    fields: dict[str, Any], by_email: str | None, by_sms: str | None
) -> None:
    someone = user(1, **fields)

    assert address(someone, CHANNELS["email"], KIND) == (
        Skip(by_email) if by_email else someone["email"]
    )
    found = address(someone, CHANNELS["sms"], KIND)
    assert found == Skip(by_sms) if by_sms else str(found).startswith("7900")


def test_e4_what_is_not_said_is_not_ticked() -> None:
    someone = user(1)
    del someone["email_notifications"]
    assert address(someone, CHANNELS["email"], KIND) == Skip("email not wanted")


def test_e4_who_is_not_said_to_be_inactive_is_active() -> None:
    someone = user(1)
    del someone["is_active"]
    assert address(someone, CHANNELS["email"], KIND) == someone["email"]


@given(st.dictionaries(st.sampled_from(sorted(user(1))), JSON), st.sampled_from(["email", "sms"]))
def test_e4_a_user_with_any_fields_is_skipped_or_has_opted_in_with_a_valid_address(
    fields: dict[str, Any], channel: str
) -> None:
    someone = user(1) | fields

    found = address(someone, CHANNELS[channel], KIND)

    if isinstance(found, str):
        ADDRESS[channel].validate_python(found)
        assert someone.get("is_active", True) is someone[f"{channel}_notifications"] is True
    else:
        assert stored(found.why) == found.why, "can't be stored"


@given(JSON | st.dictionaries(st.just("id"), JSON))
def test_whatever_stands_in_a_page_is_a_user_by_his_id_or_has_a_fault(item: Any) -> None:
    to = Addressee.of(item, "page 1, item 1")

    found = user_id(item)

    assert to.fault == (found.why if isinstance(found, Skip) else None)
    assert to.id == ("page 1, item 1" if to.fault else str(item["id"]))
    assert to.id.isprintable() or not to.id.isascii()


QUERIES = st.lists(
    st.tuples(
        st.sampled_from(["id", "is_active", "q", "page_size", "page_number"]),
        st.text("abc/%20+é", max_size=6),
    ),
    max_size=5,
)


@given(QUERIES, st.integers(0, 9999), st.integers(1, 999), st.integers(1, 1000))
def test_e5_a_page_of_a_list_has_its_number_and_size_and_all_else_as_it_was(
    parts: list[tuple[str, str]], index: int, first: int, size: int
) -> None:
    others = [f"{k}={v}" for k, v in parts if not k.startswith("page_")]
    given_ = [*others, f"page_number={first}", f"page_size={size}"]
    urls = PageUrls.of("http://auth/users/?" + "&".join(given_[::-1]))

    asked = urlsplit(urls.at(index))

    assert urls.size == size
    assert asked._replace(query="").geturl() == "http://auth/users/"
    pairs = asked.query.split("&")
    assert sorted(pairs) == sorted([*others, f"page_number={first + index}", f"page_size={size}"])


def test_e5_a_list_that_names_no_page_is_asked_for_500_from_page_1() -> None:
    urls = PageUrls.of("http://auth/api/v1/users/?id=7#top")
    assert urls.at(0) == "http://auth/api/v1/users/?id=7&page_number=1&page_size=500"
    assert dict(parse_qsl(urlsplit(urls.at(4)).query))["page_number"] == "5"
    assert PageUrls.of("http://auth/users").at(0) == (
        "http://auth/users?page_number=1&page_size=500"
    )


@pytest.mark.parametrize("query", ["page_size=0", "page_size=x", "page_size=1e9", "page_number=-1"])
def test_a_list_with_a_nonsensical_page_is_refused_by_the_name_of_what_is_wrong(query: str) -> None:
    with pytest.raises(InvalidPostingError, match=query.partition("=")[0]):
        PageUrls.of(f"http://auth/users/?{query}")


def test_e5_a_page_is_a_list_or_results_or_one_user() -> None:
    assert page([1, 2], 2) == ([1, 2], False)
    assert page({"results": [1], "count": 1}, 2) == ([1], True)
    assert page({"id": 7}, 1) == ([{"id": 7}], True)
    assert page([], 1) == ([], True)


@pytest.mark.parametrize("answer", [None, 7, "users", {"results": {"id": 1}}])
def test_an_answer_of_another_form_is_no_page(answer: Any) -> None:
    with pytest.raises(InvalidPostingError, match="no list"):
        page(answer, 500)


def test_e7_a_message_has_one_id_of_posting_way_and_user() -> None:
    one, other = uuid4(), uuid4()
    ids = {
        message_id(posting, channel, who)
        for posting in (one, other)
        for channel in ("email", "sms")
        for who in ("7", "8")
    }
    assert len(ids) == 8
    assert message_id(one, "email", "7") in ids
    assert posting_id(str(one)) == one
    assert posting_id("order-7") == posting_id("order-7") != posting_id("order-8")


def test_a_dead_letter_that_was_sent_after_all_is_sent_and_nothing_sent_changes() -> None:
    change = {
        (before, told)
        for before in MessageState
        for told in (MessageState.SENT, MessageState.FAILED, MessageState.EXPIRED)
        if settled(before, told)
    }
    assert change == {
        *((MessageState.CREATED, told) for told in ("sent", "failed", "expired")),
        (MessageState.FAILED, MessageState.SENT),
        (MessageState.EXPIRED, MessageState.SENT),
    }


@pytest.mark.parametrize(
    ("ended", "pages", "open_messages", "expected"),
    [
        (None, 0, 0, "accepted"),
        (None, 1, 0, "expanding"),
        ("expanded", 1, 1, "sending"),
        ("expanded", 1, 0, "done"),
        ("failed", 1, 1, "failed"),
        ("expired", 1, 1, "expired"),
    ],
)
def test_how_far_a_posting_is(
    ended: str | None, pages: int, open_messages: int, expected: str
) -> None:
    assert state(ended, begun=pages > 0, open_messages=open_messages) == expected


@pytest.mark.parametrize("url", ["/unsubscribe", "https://x/{user}", "https://x/{user_id"])
def test_an_unsubscribe_url_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"must look like|may hold"):
        MailingsSettings(unsubscribe_url=url)


def test_ids_are_those_of_released_versions() -> None:
    # A change here would send what is half given out twice.
    posting = UUID("5f0c1f6e-8d0e-4b57-9a3d-0a8b5d5b7a11")
    assert message_id(posting, "email", "7") == UUID("55e1559c-82d2-5f34-a787-93875f4093bc")
