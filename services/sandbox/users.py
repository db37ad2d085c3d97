"""The users of the directory: as many as asked for, made up when they are looked at.

Pure, and without memory: a user follows from his number. Whether he is active and what he wants
depends on the number's place in a pattern that repeats, so that a page of a filtered list is found
without looking at the pages before it.
"""

import hashlib
import random
from collections.abc import Iterator
from itertools import count as counting
from typing import Any
from uuid import UUID

PATTERN = 100
KINDS = ("new_movies", "new_episode", "reactions_summary", "advertising")

_FIRST = (
    "Anna",
    "Boris",
    "Vera",
    "Gleb",
    "Daria",
    "Egor",
    "Zhanna",
    "Ivan",
    "Kira",
    "Lev",
    "Maria",
)
_LAST = ("Abramenko", "Kim", "Lem", "Berg", "Novak", "Dumas", "Kovalenko", "Stein", "Wolff")
_OPERATORS = (900, 903, 905, 910, 915, 916, 921, 925, 926, 951, 960, 965, 977, 985, 999)
_TIMEZONES = (
    *("Europe/Moscow",) * 6,
    *("Asia/Yekaterinburg", "Asia/Novosibirsk", "Asia/Krasnoyarsk", "Asia/Vladivostok"),
    *("Europe/Kaliningrad", "Europe/Samara", "Asia/Omsk", "Asia/Kamchatka", "Europe/Berlin"),
    *("America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "UTC"),
)
_BAD_TIMEZONES = ("Mars/Olympus_Mons", "MSK+3", "", None)


class Directory:
    """Users number 0 to ``count - 1``.

    Of a hundred, about 92 are active, 80 want e-mail and 60 SMS; about 2 have no e-mail address,
    3 no phone and 2 a time zone that does not exist.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        chance = random.Random("ringback")  # noqa: S311 - the same users every time
        self._pattern = [
            {
                "is_active": chance.random() < 0.92,  # noqa: PLR2004 - see the docstring
                "email_notifications": chance.random() < 0.8,  # noqa: PLR2004
                "sms_notifications": chance.random() < 0.6,  # noqa: PLR2004
            }
            for _ in range(PATTERN)
        ]

    def user(self, number: int) -> dict[str, Any]:
        """Return one user as the API shows him."""
        # Bytes of chance, the same for the same number. The first eight go into the id.
        chance = hashlib.blake2b(b"user %d" % number, digest_size=24).digest()
        first, last = _FIRST[chance[8] % len(_FIRST)], _LAST[chance[9] % len(_LAST)]
        settings = self._pattern[number % PATTERN]
        timezone: str | None = _TIMEZONES[chance[10] % len(_TIMEZONES)]
        if chance[11] < 5:  # noqa: PLR2004 - 5 of 256 are 2 of 100
            timezone = _BAD_TIMEZONES[chance[12] % len(_BAD_TIMEZONES)]
        address = f"{first}.{last}.{number}@example.com".lower()
        phone = f"7{_OPERATORS[chance[13] % len(_OPERATORS)]}{number % 10_000_000:07d}"
        return {
            "id": str(_identity(number, chance)),
            "name": f"{first} {last}",
            "email": None if chance[14] < 5 else address,  # noqa: PLR2004
            "phone": None if chance[15] < 8 else phone,  # noqa: PLR2004
            "timezone": timezone,
            **settings,
            # A kind that is not named is on.
            "notifications": {
                kind: chance[16 + place] < 200  # noqa: PLR2004
                for place, kind in enumerate(KINDS)
                if chance[20 + place] < 200  # noqa: PLR2004
            },
        }

    def number_of(self, identity: UUID) -> int | None:
        """Return the number of the user with this id, if there is one."""
        number = int.from_bytes(identity.bytes[12:])
        chance = hashlib.blake2b(b"user %d" % number, digest_size=24).digest()
        known = number < self.count and identity == _identity(number, chance)
        return number if known else None

    def page(
        self, number: int, size: int, wanted: dict[str, bool], *, endless: bool = False
    ) -> list[dict[str, Any]]:
        """Return a page, the first is 1, of the users whose settings are as wanted.

        With ``endless``, there always is a next page.
        """
        places = [
            place
            for place, settings in enumerate(self._pattern)
            if all(settings[name] == value for name, value in wanted.items())
        ]
        if not places:
            return []
        users = []
        for nth in range((number - 1) * size, number * size):
            each = nth // len(places) * PATTERN + places[nth % len(places)]
            if each >= self.count and not endless:
                break
            users.append(self.user(each))
        return users

    def reachable(self, start: int) -> Iterator[dict[str, Any]]:
        """Iterate, round and round, over active users who have and want e-mail."""
        for number in counting(start):
            user = self.user(number % self.count)
            if user["is_active"] and user["email_notifications"] and user["email"]:
                yield user


def _identity(number: int, chance: bytes) -> UUID:
    """Return an id that looks like any other, and holds the number in its last four bytes."""
    return UUID(bytes=chance[:8] + bytes([0x80]) + chance[9:12] + number.to_bytes(4), version=4)
