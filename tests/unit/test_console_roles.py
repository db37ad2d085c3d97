"""Roles from the claims of a user."""

from typing import Any

import pytest

from services.console.sign_in.roles import Role, role_of


@pytest.mark.parametrize(
    ("value", "role"),
    [
        ("viewer", Role.VIEWER),
        ("admin", Role.ADMIN),
        (["viewer", "operator"], Role.OPERATOR),
        (["offline_access", "operator", 7, None], Role.OPERATOR),
        ([], None),
        (["Admin"], None),
        ("adminviewer", None),
        (True, None),
        (3, None),
        ({"admin": True}, None),
        (None, None),
    ],
)
def test_m11_the_highest_role_of_the_claim_counts(value: Any, role: Role | None) -> None:
    assert role_of({"roles": value}, "roles", {}) is role


def test_m11_a_user_without_the_claim_has_no_role() -> None:
    assert role_of({"role": "admin"}, "roles", {}) is None


def test_m11_dots_lead_into_objects_unless_the_claim_itself_contains_them() -> None:
    claims = {"realm_access": {"roles": ["admin"]}, "https://example.com/roles": ["operator"]}
    assert role_of(claims, "realm_access.roles", {}) is Role.ADMIN
    assert role_of(claims, "https://example.com/roles", {}) is Role.OPERATOR
    assert role_of(claims, "realm_access.roles.more", {}) is None
    assert role_of({"realm_access": "admin"}, "realm_access.roles", {}) is None


def test_m11_names_map_the_values_of_the_claim() -> None:
    names = {"ops/admins": "admin", "company.example": "viewer"}
    assert role_of({"groups": ["ops/admins"]}, "groups", names) is Role.ADMIN
    assert role_of({"hd": "company.example"}, "hd", names) is Role.VIEWER
    # The names of the roles themselves have no meaning then.
    assert role_of({"groups": ["admin"]}, "groups", names) is None


def test_m11_only_a_verified_address_gives_a_role() -> None:
    names = {"ada@example.com": "admin"}
    claims = {"email": "ada@example.com"}
    assert role_of(claims | {"email_verified": True}, "email", names) is Role.ADMIN
    assert role_of(claims | {"email_verified": "true"}, "email", names) is None
    assert role_of(claims, "email", names) is None
