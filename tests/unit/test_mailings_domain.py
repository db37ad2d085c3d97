"""Recipients (E4), pages of user lists, message ids, and states."""

from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from services.mailings.domain import (
    InvalidPostingError,
    Page,
    PageUrls,
    Recipient,
    Skip,
    address,
    may_change,
    message_id,
    parse_page,
    posting_id,
    posting_state,
    storable,
)
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
        ({"email_notifications": False}, "email not enabled", None),
        ({"email_notifications": None}, "email not enabled", None),
        ({"sms_notifications": False}, None, "sms not enabled"),
        ({"sms_notifications": 1}, None, "sms not enabled"),
        ({"notifications": {KIND: False}}, f"{KIND} not enabled", f"{KIND} not enabled"),
        ({"notifications": {KIND: True}}, None, None),
        ({"notifications": {"other": False}}, None, None),
        *(
            ({"notifications": {KIND: value}}, f"{KIND} not enabled", f"{KIND} not enabled")
            for value in (0, None, "false", "true", 1, [], [True])  # finding C9
        ),
        *(
            ({"notifications": value}, *["invalid notifications: not a JSON object"] * 2)
            for value in (None, 0, "all", [KIND])
        ),
        ({"email": None}, "no e-mail address", None),
        ({"email": ""}, "no e-mail address", None),
        ({"email": "user@"}, "invalid e-mail address", None),
        ({"email": "a@b.c\r\nBcc: x@y.z"}, "invalid e-mail address", None),
        ({"email": ["a@b.com"]}, "invalid e-mail address", None),
        ({"email": "ann@-bücher.example"}, "invalid e-mail address", None),
        ({"email": "ann@bücher..example"}, "invalid e-mail address", None),
        ({"phone": None}, None, "no phone"),
        ({"phone": "12"}, None, "invalid phone"),
        ({"phone": "+7 (900) 123-45-67"}, None, None),
        ({"phone": 79001234567}, None, None),
        ({"timezone": None}, None, None),
        ({"timezone": "Mars/Base"}, *["unknown time zone 'Mars/Base'"] * 2),
        ({"timezone": ""}, *["unknown time zone ''"] * 2),
        ({"timezone": 7}, *["unknown time zone that is not a text"] * 2),
    ],
)
def test_e4_only_users_who_enabled_the_channel_and_the_kind_have_an_address(
    fields: dict[str, Any], by_email: str | None, by_sms: str | None
) -> None:
    listed_user = user(1, **fields)

    found = address(listed_user, CHANNELS["email"], KIND, required=False)
    assert _reason(found) == by_email
    assert by_email or found == listed_user["email"]
    found = address(listed_user, CHANNELS["sms"], KIND, required=False)
    assert _reason(found) == by_sms
    assert by_sms or str(found).startswith("7900")


def _reason(found: str | Skip) -> str | None:
    return found.reason if isinstance(found, Skip) else None


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"email": None}, "no_address"),
        ({"email": "ann"}, "invalid_address"),
        ({"is_active": False}, "not_enabled"),
        ({"email_notifications": False}, "not_enabled"),
        ({"notifications": {KIND: False}}, "not_enabled"),
        ({"notifications": []}, "invalid_recipient"),
        ({"timezone": "Mars/Base"}, "invalid_recipient"),
    ],
)
def test_m6_the_reason_to_skip_a_recipient_has_a_code(fields: dict[str, Any], code: str) -> None:
    found = address(user(1, **fields), CHANNELS["email"], KIND, required=False)

    assert isinstance(found, Skip)
    assert found.code == code


@pytest.mark.parametrize(
    ("email", "expected"),
    [
        ("ann@bücher.example", "ann@xn--bcher-kva.example"),
        ("Änn@Bücher.Example", "Änn@xn--bcher-kva.example"),
        ("用户@例え.テスト", "用户@xn--r8jz45g.xn--zckzah"),
        ("ann@example.com", "ann@example.com"),
    ],
)
def test_finding_c18_an_internationalised_address_has_its_domain_in_ascii(
    email: str, expected: str
) -> None:
    found = address(user(1, email=email), CHANNELS["email"], KIND, required=False)

    assert found == expected


@pytest.mark.parametrize(
    ("phone", "is_valid"),
    [
        ("+7 916 123-45-67", True),
        ("8 (916) 123-45-67", False),  # Russian, in its national format
        ("8 999 123-45-67", False),
        ("0049 30 123456", False),
        ("030 123456", False),
        ("210 1234567890", False),
        ("+1 555 0100 100", True),
        ("+998 90 123 45 67", True),
        ("+49 30 123456789012345", False),
        ("+49 30", False),
    ],
)
def test_finding_c18_a_phone_begins_with_a_country_code(phone: str, is_valid: bool) -> None:  # noqa: FBT001 - a parameter of the test
    found = address(user(1, phone=phone), CHANNELS["sms"], KIND, required=False)

    assert isinstance(found, Skip) != is_valid


def test_e4_a_channel_is_off_by_default() -> None:
    listed_user = user(1)
    del listed_user["email_notifications"]
    found = address(listed_user, CHANNELS["email"], KIND, required=False)
    assert _reason(found) == "email not enabled"


def test_e4_a_user_is_active_by_default() -> None:
    listed_user = user(1)
    del listed_user["is_active"]
    assert address(listed_user, CHANNELS["email"], KIND, required=False) == listed_user["email"]


@given(st.dictionaries(st.sampled_from(sorted(user(1))), JSON), st.sampled_from(["email", "sms"]))
def test_e4_a_user_with_any_fields_is_skipped_or_has_opted_in_with_a_valid_address(
    fields: dict[str, Any], channel: str
) -> None:
    listed_user = user(1) | fields

    found = address(listed_user, CHANNELS[channel], KIND, required=False)

    if isinstance(found, str):
        ADDRESS[channel].validate_python(found)
        assert listed_user.get("is_active", True) is listed_user[f"{channel}_notifications"] is True
    else:
        assert storable(found.reason) == found.reason


@given(JSON | st.dictionaries(st.just("id"), JSON))
def test_any_item_of_a_page_has_a_valid_id_or_an_error(item: Any) -> None:
    recipient = Recipient.of(item, "page 1, item 1")

    assert recipient.id == ("page 1, item 1" if recipient.error else str(item["id"]))
    assert recipient.user == ({} if recipient.error else item)
    assert recipient.id.isprintable() or not recipient.id.isascii()


QUERIES = st.lists(
    st.tuples(
        st.sampled_from(["id", "is_active", "q", "page_size", "page_number"]),
        st.text("abc/%20+é", max_size=6),
    ),
    max_size=5,
)


@given(QUERIES, st.integers(0, 9999), st.integers(1, 999), st.integers(1, 1000))
def test_e5_the_url_of_a_page_changes_only_page_number_and_page_size(
    parts: list[tuple[str, str]], index: int, first: int, size: int
) -> None:
    others = [f"{k}={v}" for k, v in parts if not k.startswith("page_")]
    query = [*others, f"page_number={first}", f"page_size={size}"]
    urls = PageUrls.of("http://auth/users/?" + "&".join(query[::-1]))

    page = urlsplit(urls.at(index))

    assert urls.size == size
    assert page._replace(query="").geturl() == "http://auth/users/"
    pairs = page.query.split("&")
    assert sorted(pairs) == sorted([*others, f"page_number={first + index}", f"page_size={size}"])


def test_e5_pages_of_500_from_page_1_are_the_default() -> None:
    urls = PageUrls.of("http://auth/api/v1/users/?id=7#top")
    assert urls.at(0) == "http://auth/api/v1/users/?id=7&page_number=1&page_size=500"
    assert dict(parse_qsl(urlsplit(urls.at(4)).query))["page_number"] == "5"
    assert PageUrls.of("http://auth/users").at(0) == (
        "http://auth/users?page_number=1&page_size=500"
    )


@pytest.mark.parametrize("query", ["page_size=0", "page_size=x", "page_size=1e9", "page_number=-1"])
def test_an_invalid_page_parameter_is_rejected_by_name(query: str) -> None:
    with pytest.raises(InvalidPostingError, match=query.partition("=")[0]):
        PageUrls.of(f"http://auth/users/?{query}")


NEXT = "http://auth/?page_number=2"


def page(response: Any, earlier: int = 0) -> Page:
    """Return the page in a response to a request for two users."""
    return parse_page(response, size=2, earlier=earlier, by_number=NEXT)


def test_e5_a_page_is_a_list_or_results_or_a_single_user() -> None:
    assert page([1, 2])[:2] == ([1, 2], NEXT)
    assert page({"results": [1], "count": 1})[:2] == ([1], None)
    assert page({"id": 7})[:2] == ([{"id": 7}], None)
    assert page([])[:2] == ([], None)


@pytest.mark.parametrize(
    ("response", "earlier", "next_page"),
    [
        ({"results": [1], "next": "http://auth/?cursor=b"}, 0, "http://auth/?cursor=b"),
        ({"results": [1, 2], "next": None}, 0, None),
        ({"results": [1, 2], "next": ""}, 0, None),
        ({"results": [1], "count": 3}, 0, NEXT),
        ({"results": [1], "count": 3}, 2, None),
        ({"results": [1, 2], "count": 2}, 0, None),
        ({"results": [1]}, 0, None),
    ],
)
def test_finding_c3_next_or_count_decides_whether_a_list_continues(
    response: Any, earlier: int, next_page: str | None
) -> None:
    assert page(response, earlier)[:2] == (response["results"], next_page)


@pytest.mark.parametrize(
    "response", [{"results": [1], "next": None, "count": 3}, {"results": [], "count": 3}]
)
def test_finding_c3_a_list_that_ends_before_its_count_is_rejected(response: Any) -> None:
    with pytest.raises(InvalidPostingError, match="ends before its count of 3 users"):
        page(response)


def test_finding_c8_a_required_message_reaches_a_user_who_has_not_opted_in() -> None:
    found = user(
        1, is_active=False, email_notifications=False, notifications={KIND: False}, timezone="Mars"
    )
    assert address(found, CHANNELS["email"], KIND, required=True) == found["email"]
    without = address(found | {"email": None}, CHANNELS["email"], KIND, required=True)
    assert _reason(without) == "no e-mail address"


def test_e5_a_page_has_a_maximum_number_of_items() -> None:
    assert len(page([0] * 100_000).items) == 100_000
    with pytest.raises(InvalidPostingError, match="the page has more than 100000 items"):
        page([0] * 100_001)


@pytest.mark.parametrize("response", [None, 7, "users", {"results": {"id": 1}}])
def test_a_response_of_another_form_is_rejected(response: Any) -> None:
    with pytest.raises(InvalidPostingError, match="not a list"):
        page(response)


def test_e7_a_message_id_depends_on_posting_channel_and_user_only() -> None:
    one, other = uuid4(), uuid4()
    ids = {
        message_id(posting, channel, user_id)
        for posting in (one, other)
        for channel in ("email", "sms")
        for user_id in ("7", "8")
    }
    assert len(ids) == 8
    assert message_id(one, "email", "7") in ids
    assert posting_id(str(one)) == one
    assert posting_id("order-7") == posting_id("order-7") != posting_id("order-8")


def test_a_redriven_dead_letter_becomes_sent_and_a_sent_message_never_changes() -> None:
    change = {
        (before, new)
        for before in MessageState
        for new in (MessageState.SENT, MessageState.FAILED, MessageState.EXPIRED)
        if may_change(before, new)
    }
    assert change == {
        *((MessageState.CREATED, new) for new in ("sent", "failed", "expired")),
        (MessageState.FAILED, MessageState.SENT),
        (MessageState.EXPIRED, MessageState.SENT),
        (MessageState.CANCELLED, MessageState.SENT),
    }


@pytest.mark.parametrize(
    ("ended", "pages", "unsettled", "expected"),
    [
        (None, 0, 0, "accepted"),
        (None, 1, 0, "expanding"),
        ("expanded", 1, 1, "sending"),
        ("expanded", 1, 0, "done"),
        ("failed", 1, 1, "failed"),
        ("expired", 1, 1, "expired"),
    ],
)
def test_the_state_of_a_posting_follows_from_its_end_its_pages_and_its_open_messages(
    ended: str | None, pages: int, unsettled: int, expected: str
) -> None:
    assert posting_state(ended, started=pages > 0, unsettled=unsettled) == expected


@pytest.mark.parametrize("url", ["/unsubscribe", "https://x/{user_id}", "https://x/u?a=b"])
def test_an_invalid_unsubscribe_url_is_rejected(url: str) -> None:
    with pytest.raises(ValueError, match="must look like"):
        MailingsSettings(unsubscribe_url=url)


def test_message_ids_never_change() -> None:
    # A change would send the messages of half-expanded postings twice.
    posting = UUID("5f0c1f6e-8d0e-4b57-9a3d-0a8b5d5b7a11")
    assert message_id(posting, "email", "7") == UUID("55e1559c-82d2-5f34-a787-93875f4093bc")
