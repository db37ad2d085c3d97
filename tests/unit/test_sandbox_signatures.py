"""The sandbox checks signatures independently. The reference is `standardwebhooks`."""

import base64
import hmac
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from standardwebhooks import Webhook

from services.sandbox.domain import DEFAULT_SECRET, SecretKeys, check_signatures

NOW = 1_614_265_330
BODY = b'{"test": 2432232314}'
VECTOR_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
VECTOR = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": str(NOW),
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}


def hex_signature(secret: str, body: bytes) -> str:
    return hmac.new(secret.encode(), body, "sha256").hexdigest()


def test_the_published_vector_verifies() -> None:
    check = check_signatures(VECTOR, BODY, [SecretKeys.derive(VECTOR_SECRET)], NOW)
    assert check.matched == ("webhook-signature",)
    assert check.verified


@given(
    secret=st.binary(min_size=1, max_size=64),
    identity=st.text(min_size=1, max_size=40),
    body=st.text(max_size=200),
    age=st.integers(-300, 300),
)
def test_signatures_of_the_reference_library_verify_and_changed_ones_do_not(
    secret: bytes, identity: str, body: str, age: int
) -> None:
    timestamp = NOW - age
    signature = Webhook(secret).sign(identity, datetime.fromtimestamp(timestamp, UTC), body)
    headers = {
        "webhook-id": identity,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature,
    }
    keys = [SecretKeys.derive("whsec_" + base64.b64encode(secret).decode())]
    assert check_signatures(headers, body.encode(), keys, NOW).verified
    assert not check_signatures(headers, body.encode() + b" ", keys, NOW).verified
    assert not check_signatures(
        {**headers, "webhook-id": identity + "2"}, body.encode(), keys, NOW
    ).verified


def test_a_secret_without_the_prefix_is_used_as_utf8_bytes() -> None:
    secret = "пароль"
    signed_at = datetime.fromtimestamp(NOW, UTC)
    signature = Webhook(secret.encode()).sign("msg_1", signed_at, BODY.decode())
    headers = {**VECTOR, "webhook-id": "msg_1", "webhook-signature": signature}
    assert check_signatures(headers, BODY, [SecretKeys.derive(secret)], NOW).verified


def test_x_signature_uses_the_whole_secret_string_even_with_the_prefix() -> None:
    headers = {"x-signature": hex_signature(VECTOR_SECRET, BODY)}
    assert check_signatures(headers, BODY, [SecretKeys.derive(VECTOR_SECRET)], NOW).matched == (
        "x-signature",
    )


def test_any_secret_and_any_entry_can_match_during_a_rotation() -> None:
    keys = [SecretKeys.derive("old"), SecretKeys.derive(VECTOR_SECRET)]
    headers = {
        **VECTOR,
        "webhook-signature": f"v1,AAAA v1a,BBBB {VECTOR['webhook-signature']}",
        "x-signature": hex_signature("old", BODY),
    }
    assert check_signatures(headers, BODY, keys, NOW).matched == (
        "x-signature",
        "webhook-signature",
    )


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"webhook-signature": "v1,AAAA"}, "no v1 entry"),
        ({"webhook-signature": VECTOR["webhook-signature"].removeprefix("v1,")}, "no v1 entry"),
        ({"webhook-signature": VECTOR["webhook-signature"].replace("v1", "v2")}, "no v1 entry"),
        ({"webhook-signature": "v1,\udcff"}, "no v1 entry"),
        ({"webhook-timestamp": str(NOW - 301)}, "301 s old"),
        ({"webhook-timestamp": str(NOW + 301)}, "301 s ahead"),
        ({"webhook-timestamp": f"{NOW}.0"}, "not a Unix time"),
        ({"webhook-timestamp": "9" * 5000}, "not a Unix time"),
        ({"webhook-timestamp": ""}, "webhook-timestamp is missing"),
        ({"webhook-id": ""}, "webhook-id is missing"),
    ],
)
def test_a_wrong_standard_webhooks_header_is_named(change: dict[str, str], fault: str) -> None:
    check = check_signatures({**VECTOR, **change}, BODY, [SecretKeys.derive(VECTOR_SECRET)], NOW)
    assert not check.verified
    assert fault in check.faults[0]


@pytest.mark.parametrize(
    "signature",
    [
        hex_signature(DEFAULT_SECRET, BODY).upper(),
        hex_signature("another", BODY),
        hex_signature(DEFAULT_SECRET, BODY) + " ",
        "",
        "\udcff",
    ],
)
def test_a_wrong_x_signature_is_a_fault(signature: str) -> None:
    check = check_signatures(
        {"x-signature": signature}, BODY, [SecretKeys.derive(DEFAULT_SECRET)], NOW
    )
    assert not check.verified
    assert check.faults[0].startswith("x-signature: is not")


def test_every_signature_must_match() -> None:
    headers = {**VECTOR, "x-signature": hex_signature("another", BODY)}
    check = check_signatures(headers, BODY, [SecretKeys.derive(VECTOR_SECRET)], NOW)
    assert check.matched == ("webhook-signature",)
    assert not check.verified


def test_a_missing_signature_is_a_fault() -> None:
    headers = {name: value for name, value in VECTOR.items() if name != "webhook-signature"}
    check = check_signatures(headers, BODY, [SecretKeys.derive(VECTOR_SECRET)], NOW)
    assert not check.verified
    assert check.faults[0].startswith("no signature")


@pytest.mark.parametrize("secret", ["whsec_", "whsec_!!!!", "whsec_abc"])
def test_an_invalid_whsec_secret_is_rejected(secret: str) -> None:
    with pytest.raises(ValueError, match="base64"):
        SecretKeys.derive(secret)


def test_any_line_of_x_signature_can_match_during_a_rotation() -> None:
    lines = [("x-signature", hmac.digest(key, b"{}", "sha256").hex()) for key in (b"new", b"old")]
    keys = [SecretKeys.derive("old")]
    assert check_signatures(CIMultiDict(lines), b"{}", keys, 0).verified
    assert not check_signatures(CIMultiDict(lines[:1]), b"{}", keys, 0).verified
