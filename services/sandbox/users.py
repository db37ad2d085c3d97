"""The users of the user list, computed on demand.

Users are not stored: each is computed from a number. A repeated pattern decides whether they are
active, and which notifications they have enabled. So a page of a filtered list needs no earlier
pages.
"""

import hashlib
import random
from collections.abc import Iterator
from itertools import count as counting
from typing import Any
from uuid import UUID

from shared.contracts.messages import SANDBOX_DOMAIN

PATTERN_LENGTH = 100
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
_TIMEZONES = (
    *("Europe/Moscow",) * 6,
    *("Asia/Yekaterinburg", "Asia/Novosibirsk", "Asia/Krasnoyarsk", "Asia/Vladivostok"),
    *("Europe/Kaliningrad", "Europe/Samara", "Asia/Omsk", "Asia/Kamchatka", "Europe/Berlin"),
    *("America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "UTC"),
)
_BAD_TIMEZONES = ("Mars/Olympus_Mons", "MSK+3", "", None)


class Directory:
    """Users number 0 to `count - 1`.

    Of each hundred, about 92 are active, 80 want e-mail and 60 want SMS. About 2 have no e-mail
    address, 3 have no phone, and 2 have an unknown time zone.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        generator = random.Random("ringback")  # noqa: S311 - the same users every time
        self._pattern = [
            {
                "is_active": generator.random() < 0.92,  # noqa: PLR2004 - see the docstring
                "email_notifications": generator.random() < 0.8,  # noqa: PLR2004
                "sms_notifications": generator.random() < 0.6,  # noqa: PLR2004
            }
            for _ in range(PATTERN_LENGTH)
        ]

    def user(self, number: int) -> dict[str, Any]:
        """Return one user as JSON of the API."""
        # Pseudo-random bytes of this number. The first eight go into the id.
        random_bytes = hashlib.blake2b(b"user %d" % number, digest_size=24).digest()
        first, last = _FIRST[random_bytes[8] % len(_FIRST)], _LAST[random_bytes[9] % len(_LAST)]
        settings = self._pattern[number % PATTERN_LENGTH]
        timezone: str | None = _TIMEZONES[random_bytes[10] % len(_TIMEZONES)]
        if random_bytes[11] < 5:  # noqa: PLR2004 - 5 of 256 are 2 of 100
            timezone = _BAD_TIMEZONES[random_bytes[12] % len(_BAD_TIMEZONES)]
        address = f"{first}.{last}.{number}@sandbox{SANDBOX_DOMAIN}".lower()
        phone = f"7000{number % 10_000_000:07d}"  # nobody has a number that begins with 7000
        return {
            "id": str(_identity(number, random_bytes)),
            "name": f"{first} {last}",
            "email": None if random_bytes[14] < 5 else address,  # noqa: PLR2004
            "phone": None if random_bytes[15] < 8 else phone,  # noqa: PLR2004
            "timezone": timezone,
            **settings,
            # A kind that is not listed is on.
            "notifications": {
                kind: random_bytes[16 + place] < 200  # noqa: PLR2004
                for place, kind in enumerate(KINDS)
                if random_bytes[20 + place] < 200  # noqa: PLR2004
            },
        }

    def number_of(self, identity: UUID) -> int | None:
        """Return the number of the user with this id, or None."""
        number = int.from_bytes(identity.bytes[12:])
        random_bytes = hashlib.blake2b(b"user %d" % number, digest_size=24).digest()
        known = number < self.count and identity == _identity(number, random_bytes)
        return number if known else None

    def page(
        self, number: int, size: int, wanted: dict[str, bool], *, endless: bool = False
    ) -> list[dict[str, Any]]:
        """Return a page of the users with these settings; the first page is 1.

        With `endless`, the list has no last page.
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
            user_number = nth // len(places) * PATTERN_LENGTH + places[nth % len(places)]
            if user_number >= self.count and not endless:
                break
            users.append(self.user(user_number))
        return users

    def reachable(self, start: int) -> Iterator[dict[str, Any]]:
        """Iterate endlessly over active users who have an e-mail address and want e-mail."""
        for number in counting(start):
            user = self.user(number % self.count)
            if user["is_active"] and user["email_notifications"] and user["email"]:
                yield user


def _identity(number: int, random_bytes: bytes) -> UUID:
    """Return a UUID that contains the number in its last four bytes."""
    return UUID(
        bytes=random_bytes[:8] + bytes([0x80]) + random_bytes[9:12] + number.to_bytes(4), version=4
    )
