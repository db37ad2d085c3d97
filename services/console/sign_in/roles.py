"""The roles of users. Pure."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any


class Role(IntEnum):
    """What a user may do. Each role includes those below it."""

    VIEWER = 1  # reads
    OPERATOR = 2  # acts: replays, redrives, pauses, starts mailings
    ADMIN = 3  # discards, and reads kept bodies

    def __str__(self) -> str:
        return self.name.lower()


def role_of(claims: Mapping[str, Any], claim: str, names: Mapping[str, str]) -> Role | None:
    """Return the highest role that the claims of a user contain, or None.

    Args:
        claims: the claims of the user.
        claim: the name of the claim with the roles. Dots lead into objects.
        names: the role for each value of the claim. Empty: the values are the roles.
    """
    if claim == "email" and claims.get("email_verified") is not True:
        return None  # the user could have chosen any address
    found = [_role(value, names) for value in _values(claims, claim)]
    return max((role for role in found if role is not None), default=None)


def _values(claims: Mapping[str, Any], claim: str) -> list[str]:
    """Return the values of a claim: those of a list, or a single text."""
    value: Any = claims.get(claim)
    if value is None:  # a name such as https://example.com/roles contains dots, but is one claim
        value = claims
        for part in claim.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str)]


def _role(value: str, names: Mapping[str, str]) -> Role | None:
    name = names.get(value) if names else value
    return next((role for role in Role if str(role) == name), None)
