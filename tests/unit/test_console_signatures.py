"""N6: the check of a signature says whether it verifies, and why not."""

from base64 import b64encode
from datetime import UTC, datetime

import pytest

from services.callback.domain import signed_headers, signing_key
from services.console.signatures import check, parse_headers

BODY = b'{"a": 1}'
SECRET = "whsec_" + b64encode(b"a key of receivers").decode()
AT = datetime(2026, 11, 20, 12, tzinfo=UTC)


def received(secret: str = SECRET, body: bytes = BODY) -> dict[str, str]:
    """Return the headers that the callback service sends, by their lower-case names."""
    keys = [signing_key(secret)]
    sent = signed_headers("id-1", body, keys, timestamp=int(AT.timestamp()))
    return {name.lower(): value for name, value in sent.items()}


@pytest.mark.parametrize("secret", [SECRET, "plain", "ä secret"])
def test_n6_what_ringback_signs_verifies(secret: str) -> None:
    checks = check(BODY, received(secret), secret, AT)
    assert [(each.name, each.verified) for each in checks] == [
        ("X-Signature", True),
        ("webhook-signature", True),
    ]


@pytest.mark.parametrize(
    ("body", "secret", "changes", "plain", "standard"),
    [
        (BODY, "other", {}, "another secret", "No signature"),
        (b'{"a":1}', SECRET, {}, "another body", "No signature"),
        (BODY + b"\n", SECRET, {}, "spaces or line breaks", "No signature"),
        (BODY, SECRET, {"webhook-id": "id-2"}, "HMAC", "No signature"),
        (BODY, SECRET, {"webhook-timestamp": "x"}, "HMAC", "No signature"),
        (BODY, SECRET, {"webhook-signature": "v2,x"}, "HMAC", "No signature"),
    ],
)
def test_n6_a_signature_that_does_not_verify_is_explained(
    body: bytes, secret: str, changes: dict[str, str], plain: str, standard: str
) -> None:
    first, second = check(body, received() | changes, secret, AT)
    assert plain in first.text
    assert first.verified == (plain == "HMAC")
    assert standard in second.text
    assert not second.verified


def test_n6_missing_headers_are_named() -> None:
    first, second = check(BODY, {"webhook-id": "1"}, SECRET, AT)
    assert first.text == "The header is missing."
    assert second.text == "Missing: webhook-timestamp, webhook-signature."


def test_n6_frequent_mistakes_are_recognised() -> None:
    headers = received()
    capitals = headers | {"x-signature": headers["x-signature"].upper()}
    assert "capitals" in check(BODY, capitals, SECRET, AT)[0].text
    decoded = headers | {"x-signature": received("a key of receivers")["x-signature"]}
    assert "as it is" in check(BODY, decoded, SECRET, AT)[0].text
    assert "base64" in check(BODY, headers, "whsec_!", AT)[0].text


def test_n6_an_old_signature_verifies_with_a_warning() -> None:
    second = check(BODY, received(), SECRET, AT.replace(hour=13))[1]
    assert second.verified
    assert "3600 s ago" in second.text


def test_n6_one_of_several_signatures_is_enough() -> None:
    headers = received()
    headers["webhook-signature"] = f"v1,other {headers['webhook-signature']}"
    assert check(BODY, headers, SECRET, AT)[1].verified


def test_headers_are_read_line_by_line() -> None:
    text = "Webhook-Id: a:b\r\n\nnonsense\nX-Signature:  00 "
    assert parse_headers(text) == {"webhook-id": "a:b", "x-signature": "00"}
