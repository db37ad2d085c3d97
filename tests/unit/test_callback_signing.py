"""H2: the body that is sent is the body that is signed. The reference is `standardwebhooks`."""

import json
from base64 import b64encode
from datetime import UTC, datetime
from hashlib import sha256
from hmac import HMAC
from math import isfinite
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from standardwebhooks import Webhook

from services.callback import domain
from services.callback.domain import SigningError
from shared.contracts.callback import RESERVED_HEADERS, SendCallback
from shared.errors import ContractViolationError

VECTOR_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CANARY = "c4n4ry"

texts = st.text('aZ09 "\\/\b\n\t\x01\x7fé߿\u2028\uffff\U0001f600', max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**62, max_value=2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
payloads = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
# Styles in which clients write the same JSON.
styles = st.fixed_dictionaries(
    {"ensure_ascii": st.booleans(), "indent": st.none() | st.integers(0, 3)}
)
# Numbers as people and other languages write them.
digits = st.integers(0, 10**30).map(str)
numbers = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "-"]),
    digits,
    st.just("") | digits.map(".{}".format),
    st.just("") | st.builds("{}{}".format, st.sampled_from(["e", "E+", "e-"]), st.integers(0, 330)),
).filter(lambda number: isfinite(float(number)))
keys = st.sampled_from(["a", "b", "é"])
secrets = st.text("aZ09 =_é\U0001f600", min_size=1, max_size=64)  # none begins with whsec_
standard_secrets = st.binary(min_size=1, max_size=64).map(
    lambda key: "whsec_" + b64encode(key).decode()
)


def parsed(payload: str, signed_with: str = "s") -> SendCallback:
    """Return the command with this payload, given as JSON text."""
    return SendCallback.model_validate_json(
        f'{{"target_url": "https://example.com/", "hmac_secret": {json.dumps(signed_with)},'
        f' "payload": {payload}}}'
    )


def sent(payload: str) -> bytes:
    return domain.encode_json(parsed(payload).payload)


def assert_encoded_as_by_python(payload: str) -> None:
    value = json.loads(payload)
    body = sent(payload)
    assert body == json.dumps(value, sort_keys=True).encode()
    assert json.loads(body) == value


@settings(max_examples=25)
@given(payloads, styles)
def test_h2_the_body_is_byte_for_byte_the_payload_with_sorted_keys(
    payload: object, style: dict[str, object]
) -> None:
    assert_encoded_as_by_python(json.dumps(payload, **style))  # type: ignore[arg-type]


@settings(max_examples=25)
@given(numbers)
@example("-0")
@example("-0.0")
@example("1e-400")
@example("5e-324")
@example("9007199254740993.0")
@example("0.1000000000000000055511151231257827021181583404541015625")
@example("9" * 4300)
def test_h2_numbers_in_any_notation_are_parsed_as_by_python(number: str) -> None:
    assert_encoded_as_by_python(f"[{number}]")


@settings(max_examples=30)
@given(st.lists(st.tuples(keys, scalars), max_size=6))
def test_h2_the_last_value_of_a_repeated_key_is_used(items: list[tuple[str, object]]) -> None:
    members = ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in items)
    assert_encoded_as_by_python(f"{{{members}}}")


@pytest.mark.parametrize(
    "payload",
    [
        r'"\ud83d\ude00 \u00e9 \/ \b \f \n \r \t \" \\"',
        '"\U0001f600 é \u2028 \x7f"',
        r'"\\u0000 is text, as is \\\\u0000"',
        r'{"b": {"b": 1, "a": 2}, "a": []}',
        " {\r\n} ",
        "null",
        "[" * 150 + "]" * 150,
    ],
)
def test_h2_escapes_white_space_and_nesting_are_parsed_as_by_python(payload: str) -> None:
    assert_encoded_as_by_python(payload)


@pytest.mark.parametrize(
    "payload",
    [
        r'"\u0000"',
        r'"\\\u0000"',
        r'{"deep": [{"\u0000": 1}]}',
        "NaN",
        "[Infinity]",
        '{"a": -Infinity}',
        "1e999999",
        "-1e999999",
        "1" + "0" * 400 + ".0",
    ],
)
def test_row_26_a_payload_that_stores_or_receivers_reject_is_a_contract_violation(
    payload: str,
) -> None:
    with pytest.raises(ContractViolationError, match=r"^payload: "):
        sent(payload)


@given(payload=payloads, secret=secrets | standard_secrets, timestamp=st.integers(0, 2**33))
@settings(max_examples=25)
def test_h2_the_sent_body_is_the_signed_body(payload: object, secret: str, timestamp: int) -> None:
    command = parsed(json.dumps(payload), secret)
    body = domain.encode_json(command.payload)
    key = [domain.signing_key(each) for each in command.secrets]
    headers = domain.signed_headers("id-1", body, key, timestamp=timestamp)
    assert headers["X-Signature"] == HMAC(secret.encode(), body, sha256).hexdigest()
    raw: str | bytes = secret if secret.startswith("whsec_") else secret.encode()
    reference = Webhook(raw).sign("id-1", datetime.fromtimestamp(timestamp, UTC), body.decode())
    assert headers["webhook-signature"] == reference
    assert headers["webhook-id"] == "id-1"
    assert headers["webhook-timestamp"] == str(timestamp)
    assert headers["Content-Type"] == "application/json"


def test_h2_a_receiver_with_the_standard_webhooks_library_verifies_it() -> None:
    body = sent('{"b": 2, "a": "é"}')
    now = int(datetime.now(UTC).timestamp())
    headers = domain.signed_headers(
        "id-1", body, [domain.signing_key(VECTOR_SECRET)], timestamp=now
    )
    assert Webhook(VECTOR_SECRET).verify(body, dict(headers)) == {"a": "é", "b": 2}


def test_h2_the_published_test_vector_of_standard_webhooks() -> None:
    body = sent('{"test": 2432232314}')
    assert body == b'{"test": 2432232314}'
    headers = domain.signed_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        body,
        [domain.signing_key(VECTOR_SECRET)],
        timestamp=1_614_265_330,
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_h2_rfc_4231_test_case_2() -> None:
    headers = domain.signed_headers(
        "id", b"what do ya want for nothing?", [domain.signing_key("Jefe")], timestamp=0
    )
    assert headers["X-Signature"] == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


@settings(max_examples=30)
@given(st.lists(secrets | standard_secrets, min_size=1, max_size=8))
def test_h2_and_finding_d8_each_of_several_secrets_signs_and_the_first_in_x_signature(
    given_secrets: list[str],
) -> None:
    command = SendCallback(
        target_url="https://example.com/", hmac_secret=given_secrets, payload=[1]
    )
    body = domain.encode_json(command.payload)
    keys = [domain.signing_key(secret) for secret in command.secrets]
    headers = domain.signed_headers("id-1", body, keys, timestamp=1)
    first = given_secrets[0].encode()
    assert headers.getall("X-Signature") == [HMAC(first, body, sha256).hexdigest()]
    signatures = headers["webhook-signature"].split(" ")
    assert len(headers.getall("webhook-signature")) == 1
    at = datetime.fromtimestamp(1, UTC)
    for secret, signature in zip(given_secrets, signatures, strict=True):
        raw: str | bytes = secret if secret.startswith("whsec_") else secret.encode()
        assert signature == Webhook(raw).sign("id-1", at, body.decode())


@settings(max_examples=15)
@given(secrets, st.lists(st.binary(max_size=20), min_size=2, max_size=5))
def test_h2_a_key_can_sign_many_bodies(secret: str, bodies: list[bytes]) -> None:
    key = domain.signing_key(secret)
    for body in bodies:
        headers = domain.signed_headers("id", body, [key], timestamp=1)
        assert headers["X-Signature"] == HMAC(secret.encode(), body, sha256).hexdigest()


@pytest.mark.parametrize("rest", ["", CANARY, f"{CANARY}=", f"{CANARY}é", f"  {CANARY}  ", "===="])
def test_h2_a_malformed_whsec_secret_is_rejected_and_not_shown(rest: str) -> None:
    with pytest.raises(SigningError) as caught:
        domain.signing_key(f"whsec_{rest}")
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_h2_the_repr_of_a_key_does_not_contain_its_secret() -> None:
    assert CANARY not in repr(domain.signing_key(CANARY))


@pytest.mark.parametrize(
    "name",
    [
        *sorted(RESERVED_HEADERS),
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
        "webhook-anything",
    ],
)
def test_reserved_headers_cannot_be_set_in_any_case(name: str) -> None:
    for spelling in (name, name.upper(), name.title(), name.swapcase()):
        assert domain.allowed_headers({spelling: "mine", "X-Mine": "kept"}) == {"X-Mine": "kept"}


def test_all_headers_that_ringback_sets_are_reserved() -> None:
    headers = domain.signed_headers("id", b"{}", [domain.signing_key("secret")], timestamp=1)
    client_sets = ("Host", "Content-Length", "User-Agent", "Transfer-Encoding", "Connection")
    assert domain.allowed_headers(dict.fromkeys([*headers, *client_sets], "mine")) == {}


def test_s6_a_form_is_sorted_and_values_that_are_not_text_are_json() -> None:
    payload = {"ö": "a b&c", "n": 1.5, "l": [1, "x"], "t": True, "z": None}
    assert domain.encode_form(payload) == "l=%5B1%2C+%22x%22%5D&n=1.5&t=true&z=null&%C3%B6=a+b%26c"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.com/path", "https://example.com/path?a=1"),
        ("https://example.com/path?x=%20y", "https://example.com/path?x=%20y&a=1"),
        ("https://example.com", "https://example.com?a=1"),
    ],
)
def test_s6_a_query_is_added_to_the_one_in_the_url(url: str, expected: str) -> None:
    assert domain.with_query(url, "a=1") == expected


@pytest.mark.parametrize(
    "payload", [{"a": "\0"}, {"a": "\ud800"}, {"\ud800": "a"}, {"a": [float("nan")]}]
)
def test_row_26_a_payload_that_a_form_cannot_contain_is_rejected(payload: dict[str, Any]) -> None:
    with pytest.raises(ContractViolationError, match="payload"):
        domain.encode_form(payload)


def test_without_a_key_the_headers_contain_no_signature() -> None:
    headers = domain.signed_headers("id-1", b"", [], timestamp=1, content_type=None)
    assert dict(headers) == {"webhook-id": "id-1", "webhook-timestamp": "1"}
