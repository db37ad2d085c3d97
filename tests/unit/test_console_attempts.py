"""M11: attempts to sign in, and the path to return to."""

import base64
import hashlib

import pytest

from services.console.security import ATTEMPT_COOKIE
from services.console.sign_in.attempts import (
    LIFETIME,
    MAX_PATH,
    challenge,
    decode,
    local_path,
    new_attempt,
)
from services.console.sign_in.pages import MAX_ATTEMPTS


def test_m11_an_attempt_survives_the_cookie() -> None:
    attempt = new_attempt("/callbacks?status=failed")
    assert decode(attempt.encode(), attempt.state) == attempt
    assert LIFETIME <= 3600


def test_m11_every_attempt_has_its_own_secrets() -> None:
    one, two = new_attempt("/"), new_attempt("/")
    secrets = {each for attempt in (one, two) for each in (attempt.state, attempt.nonce)}
    assert len(secrets | {one.verifier, two.verifier}) == 6
    assert all(43 <= len(each) <= 128 for each in (one.verifier, two.verifier))  # RFC 7636, 4.1


def test_m11_all_attempts_of_a_browser_fit_into_one_header() -> None:
    """Servers refuse a header of more than 8,190 bytes; a locked-out user could do nothing."""
    attempts = [new_attempt("/" + "a" * (MAX_PATH - 1)) for _ in range(MAX_ATTEMPTS + 1)]
    cookies = [f"{ATTEMPT_COOKIE}{each.name}={each.encode()}; " for each in attempts]
    assert len("".join(cookies)) < 7000


@pytest.mark.parametrize("state", ["", "other", "é"])
def test_m11_another_state_is_not_known(state: str) -> None:
    assert decode(new_attempt("/").encode(), state) is None


@pytest.mark.parametrize(
    "cookie", ["", "x", "e30", "W10", "bnVsbA", "====", "é", base64.b64encode(b"[" * 9999).decode()]
)
def test_m11_what_is_not_an_attempt_is_not_known(cookie: str) -> None:
    assert decode(cookie, "state") is None


def test_m11_the_challenge_is_that_of_rfc_7636() -> None:
    # Appendix B.
    verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    assert challenge(verifier) == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    assert hashlib.sha256(verifier.encode()).digest_size == 32


@pytest.mark.parametrize(
    "path", ["/", "/callbacks", "/callbacks?client=a&status=failed", "/a//b", "/%2F%2Fevil.example"]
)
def test_m11_a_local_path_is_kept(path: str) -> None:
    assert local_path(path) == path
    assert new_attempt(path).path == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "callbacks",
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "\\/evil.example",
        "/a\\b",
        "https://evil.example",
        "javascript:alert(1)",
        "/\t/evil.example",
        "/\n/evil.example",
        "/a\r\nSet-Cookie: x=1",
        "/é",
        "/" + "a" * MAX_PATH,
    ],
)
def test_m11_any_other_path_leads_to_the_overview(path: str) -> None:
    assert local_path(path) == "/"
