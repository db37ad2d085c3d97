"""Ids that are ordered by time: UUIDv7 of RFC 9562.

Rows with such ids are inserted next to each other in an index, so the pages in use stay few.
"""

import random
import time
from typing import Final
from uuid import UUID

_TIME: Final = ((1 << 48) - 1) << 80
_VERSION: Final = 7 << 76
_VARIANT: Final = 2 << 62
_RANDOM: Final = (0xFFF << 64) | ((1 << 62) - 1)


def uuid7() -> UUID:
    """Return a new UUIDv7. It is not a secret, so its random bits cost no system call."""
    milliseconds = time.time_ns() // 1_000_000
    return _uuid7(milliseconds << 80, random.getrandbits(76))


def with_time_of(name: str, hashed: UUID) -> UUID:
    """Return `hashed` as a UUIDv7 with the time of `name`; unchanged if `name` is not a UUIDv7.

    The result depends on nothing else, so a repeat has the same id.
    """
    digits = name.replace("-", "")
    if len(digits) != 32 or digits[12] != "7":  # noqa: PLR2004 - the digits of a UUID
        return hashed
    try:
        return _uuid7(int(digits, 16) & _TIME, hashed.int)
    except ValueError:
        return hashed


def _uuid7(time_bits: int, random_bits: int) -> UUID:
    return UUID(int=time_bits | _VERSION | _VARIANT | random_bits & _RANDOM)
