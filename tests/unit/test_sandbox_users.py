"""The sandbox's user list, its catalogue, and its events."""

from datetime import UTC, datetime
from itertools import islice
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest

from services.sandbox.events import EVENTS, Producer, Producers, PublishRequest
from services.sandbox.movies import NEW_MOVIES, Catalogue
from services.sandbox.users import Directory

NOW = datetime(2026, 11, 21, 10, tzinfo=UTC)
BASE = "http://sandbox:8090"


def all_pages(directory: Directory, size: int, **filters: bool) -> list[dict[str, Any]]:
    """Read page by page until a page is short, as a client does."""
    users: list[dict[str, Any]] = []
    page: list[dict[str, Any]] = []
    number = 1
    while number == 1 or len(page) == size:
        page = directory.page(number, size, filters)
        users += page
        number += 1
    return users


@pytest.mark.parametrize("size", [7, 100, 1000])
@pytest.mark.parametrize(
    "filters",
    [{}, {"is_active": True}, {"is_active": True, "sms_notifications": False}],
    ids=["all", "active", "active without sms"],
)
def test_pages_contain_every_matching_user_once(size: int, filters: dict[str, bool]) -> None:
    directory = Directory(1234)
    expected = [
        user
        for user in map(directory.user, range(1234))
        if all(user[name] == value for name, value in filters.items())
    ]
    assert 0 < len(expected) <= 1234
    assert all_pages(directory, size, **filters) == expected


def test_a_user_is_found_by_their_id_only() -> None:
    directory = Directory(500)
    users = [directory.user(number) for number in range(501)]
    ids = [UUID(user["id"]) for user in users]
    assert [directory.number_of(each) for each in ids] == [*range(500), None]
    assert len(set(ids)) == 501
    assert directory.number_of(uuid4()) is None
    assert directory.number_of(UUID(int=3)) is None


def test_users_do_not_depend_on_the_size_of_the_list() -> None:
    assert Directory(10).user(7) == Directory(100_000).user(7)


def test_an_endless_list_continues_with_new_users() -> None:
    directory = Directory(100)
    assert directory.page(3, 50, {}) == []
    page = directory.page(1000, 50, {"is_active": True}, endless=True)
    assert len({user["id"] for user in page}) == 50
    assert all(user["is_active"] for user in page)


def test_some_users_have_missing_or_invalid_fields() -> None:
    users = [Directory(2000).user(number) for number in range(2000)]

    def has_unknown_zone(user: dict[str, Any]) -> bool:
        try:
            ZoneInfo(user["timezone"])
        except (ValueError, TypeError, OSError, KeyError):
            return True
        return False

    shares = {
        "no email": sum(user["email"] is None for user in users),
        "no phone": sum(user["phone"] is None for user in users),
        "bad time zone": sum(map(has_unknown_zone, users)),
        "inactive": sum(not user["is_active"] for user in users),
    }
    assert all(10 <= share <= 400 for share in shares.values()), shares
    phones = [user["phone"] for user in users if user["phone"]]
    assert all(len(phone) == 11 and phone.isdigit() and phone[0] == "7" for phone in phones)
    assert len(set(phones)) == len(phones)
    kinds = [user["notifications"] for user in users]
    assert any(False in each.values() for each in kinds)
    assert any("new_movies" not in each for each in kinds)


def test_the_links_of_an_event_exist() -> None:
    directory = Directory(2000)
    producers, catalogue = Producers(directory), Catalogue(BASE)

    def details(producer: Producer) -> dict[str, Any]:
        [event] = producers.events(producer, PublishRequest(), BASE, NOW)
        assert (event["from_service"], event["event"]) == (producer, EVENTS[producer])
        found: dict[str, Any] = event["details"]
        return found

    for _ in range(30):
        new = details("auth")
        number = directory.number_of(UUID(new["user"].split("/")[-2]))
        assert number is not None
        user = directory.user(number)
        assert user["email"] == new["username"]
        assert user["is_active"]
        assert user["email_notifications"]
    urls = {movie["url"] for movie in catalogue.movies(new=True)}
    assert len(urls) == NEW_MOVIES
    assert set(details("cinema_scanner")["movies"]) < urls
    [series] = details("fastapi")["series"]
    assert catalogue.one_series(UUID(series.split("/")[-2]))
    [stat] = details("activity_api")["stats"]
    assert stat["target"].startswith(f"{BASE}/activity_api/api/v1/reviews/")


def test_each_sign_up_event_is_about_another_user() -> None:
    events = Producers(Directory(2000)).events("auth", PublishRequest(count=100), BASE, NOW)
    assert len({event["details"]["user"] for event in events}) == 100


def test_given_fields_are_copied_into_the_event() -> None:
    request = PublishRequest.model_validate(
        {
            "event": "new_episode_2",
            "details": {"a": 1},
            "event_id": "e-1",
            "occurred_at": "2020-01-01T00:00:00Z",
            "expires_at": "2020-01-02T00:00:00Z",
        }
    )
    [event] = Producers(Directory(10)).events("fastapi", request, BASE, NOW)
    assert event == {
        "from_service": "fastapi",
        "event": "new_episode_2",
        "details": {"a": 1},
        "event_id": "e-1",
        "occurred_at": "2020-01-01T00:00:00+00:00",
        "expires_at": "2020-01-02T00:00:00Z",
    }


def test_reachable_users_start_again_after_the_last() -> None:
    users = list(islice(Directory(20).reachable(start=15), 40))
    assert users[0]["id"] != users[1]["id"]
    assert len({user["id"] for user in users}) < 20
