"""Validation of SendCallback: errors are named, secrets are hidden. H1, rows 15, 26, 31."""

import json
import logging
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.amqp.codec import Properties
from shared.amqp.message import Message
from shared.amqp.parsing import parse_message
from shared.contracts.callback import MAX_HEADERS, SEND_CALLBACK, SendCallback
from shared.contracts.headers import APP_ID, without_broker_headers
from shared.errors import ContractViolationError

CANARY: Final = "c4n4ry"
MINIMAL: Final = {"target_url": "https://example.com/", "hmac_secret": CANARY, "payload": {}}
JSON: Final = Properties(content_type="application/json", type="SendCallback")


def parsed(body: bytes, properties: Properties = JSON, max_bytes: int = 1_000_000) -> SendCallback:
    message: Message = Message("id-1", properties, body)
    return parse_message(message, {SEND_CALLBACK: SendCallback}, max_bytes=max_bytes)


def rejection(body: bytes, properties: Properties = JSON, max_bytes: int = 1_000_000) -> str:
    with pytest.raises(ContractViolationError) as caught:
        parsed(body, properties, max_bytes)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None  # nor in a traceback
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def with_fields(**fields: Any) -> bytes:
    return json.dumps(MINIMAL | fields).encode()


# H1
def test_h1_the_documented_form_is_accepted() -> None:
    command = parsed(
        b'{"target_url": "https://example.com/webhook", "target_method": "POST",'
        b' "hmac_secret": "your-secret-key", "payload": {"any": "json"}}'
    )
    assert command.target_url == "https://example.com/webhook"
    assert command.secrets == ("your-secret-key",)
    assert command.payload == {"any": "json"}


# H1
@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"target_url": 5}, "target_url: Input should be a valid string"),
        ({"target_url": ""}, "target_url: String should have at least 1 character"),
        ({"target_method": "TRACE"}, "target_method: Input should be 'POST', 'PUT', 'PATCH'"),
        ({"target_method": "post"}, "target_method: Input should be 'POST'"),
        ({"hmac_secret": ""}, "hmac_secret"),
        ({"hmac_secret": []}, "hmac_secret"),
        ({"hmac_secret": [CANARY, 5]}, "hmac_secret"),
        ({"hmac_secret": [CANARY] * 9}, "hmac_secret"),
        ({"hmac_secret": {CANARY: 1}}, "hmac_secret"),
        ({"hmac_secret": None}, "set either hmac_secret or secret_ref"),
        ({"secret_ref": "name"}, "set either hmac_secret or secret_ref"),
        ({"unsigned": True}, "set either hmac_secret or secret_ref"),
        ({"hmac_secret": None, "unsigned": False}, "set either hmac_secret or secret_ref"),
        ({"format": "form", "payload": ["no", "names"]}, "requires a payload that is an object"),
        ({"format": "xml"}, "format"),
        ({"hmac_secret": None, "secret_ref": "two words"}, "secret_ref: String should match"),
        ({"id": "línea"}, "id: String should match"),
        ({"id": "a\nb"}, "id: String should match"),
        ({"id": ""}, "id: String should match"),
        ({"id": "i" * 256}, "id: String should match"),
        ({"headers": {"X": 5}}, "headers.X: Input should be a valid string"),
        ({"headers": {"a b": "v"}}, "headers: 'a b' is not a header name"),
        ({"headers": {"": "v"}}, "headers: '' is not a header name"),
        ({"headers": {"X:": "v"}}, "is not a header name"),
        ({"headers": {"É": "v"}}, "is not a header name"),
        ({"headers": {"X": f"{CANARY}\r\nInjected: 1"}}, "the value of 'X' has characters"),
        ({"headers": {"X": f"{CANARY}\0"}}, "the value of 'X' has characters"),
        ({"headers": {"X": f"{CANARY}\u20ac"}}, "the value of 'X' has characters"),
        (
            {"headers": {f"X-{n}": "" for n in range(MAX_HEADERS + 1)}},
            "65 headers, at most 64 are allowed",
        ),
        ({"headers": {"X": "v" * 16_384}}, "16385 bytes of headers, at most 16384 are allowed"),
        ({"timeout": 0}, "timeout: Input should be greater than 0"),
        ({"timeout": 301}, "timeout: Input should be less than or equal to 300"),
        ({"timeout": "5"}, "timeout: Input should be a valid number"),
        ({"timeout": float("nan")}, "timeout: Input should be a finite number"),
        ({"expires_at": "2026-11-20T15:00:00"}, "expires_at: Input should have timezone info"),
        ({"expires_at": "tomorrow"}, "expires_at: Input should be a valid datetime"),
        ({"expires_at": 1_800_000_000}, "expires_at: Input should be a valid datetime"),
        ({"retry": {}}, "retry: set quick_retries_count, delays, or both"),
        ({"retry": {"quick_retries_count": -1}}, "retry.quick_retries_count: "),
        ({"retry": {"quick_retries_count": 1.5}}, "retry.quick_retries_count: "),
        ({"retry": {"delays": []}}, "retry.delays: "),
        ({"retry": {"delays": [1, 0]}}, "retry.delays.1: Input should be greater than 0"),
        ({"retry": {"delays": [3601]}}, "retry.delays.0: Input should be less than or equal to 36"),
        ({"retry": {"strategy": "constant"}}, "retry.strategy: Extra inputs are not permitted"),
        ({"client_id": ""}, "client_id: String should match"),
        ({"client_id": "a\0b"}, "client_id: String should match"),
        ({"client_id": "a\nb"}, "client_id: String should match"),
        ({"client_id": 7}, "client_id: Input should be a valid string"),
        ({"hmac_sekret": CANARY}, "hmac_sekret: Extra inputs are not permitted"),
    ],
)
def test_h1_an_invalid_field_is_named(fields: dict[str, Any], fault: str) -> None:
    assert fault in rejection(with_fields(**fields))


# H1
@pytest.mark.parametrize("field", ["target_url", "payload"])
def test_h1_a_missing_field_is_named(field: str) -> None:
    body = {name: value for name, value in MINIMAL.items() if name != field}
    assert rejection(json.dumps(body).encode()) == f"{field}: Field required"


# H1
def test_h1_up_to_ten_errors_are_named() -> None:
    several = rejection(with_fields(target_url=5, timeout=-1, client_id=""))
    assert several.count("; ") == 2
    many = rejection(with_fields(**{f"extra_{n}": 1 for n in range(15)}))
    assert many.endswith(" and 5 more")
    assert many.count("Extra inputs are not permitted") == 10


# H1
@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        (Properties(content_type="application/json"), "type is None, not 'SendCallback'"),
        (
            Properties(content_type="application/json", type="SendSms"),
            "type is 'SendSms', not 'SendCallback'",
        ),
        (Properties(type="SendCallback"), "content_type is None, not 'application/json'"),
        (
            Properties(type="SendCallback", content_type="text/plain"),
            "content_type is 'text/plain', not 'application/json'",
        ),
        (
            Properties(
                type="SendCallback", content_type="application/json", content_encoding="gzip"
            ),
            "content_encoding 'gzip' is not supported",
        ),
    ],
)
def test_h1_a_message_of_another_type_is_rejected(properties: Properties, reason: str) -> None:
    assert rejection(with_fields(), properties) == reason


@pytest.mark.parametrize(
    ("content_type", "encoding"),
    [("application/json; charset=utf-8", None), ("Application/JSON", "utf-8")],
)
def test_h1_the_content_type_may_name_utf_8(content_type: str, encoding: str | None) -> None:
    properties = Properties(
        content_type=content_type, content_encoding=encoding, type="SendCallback"
    )
    assert parsed(with_fields(), properties).payload == {}


# Row 15
def test_row_15_a_message_that_is_too_large_is_rejected_without_parsing() -> None:
    body = with_fields()
    assert parsed(body, max_bytes=len(body))
    assert rejection(body, max_bytes=len(body) - 1) == (
        f"{len(body)} bytes exceed the limit of {len(body) - 1}"
    )


# Row 26
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"nonsense",
        b"[]",
        b"null",
        b'"text"',
        json.dumps(MINIMAL).encode()[:-1],
        json.dumps(MINIMAL).encode() + b"}",
        json.dumps(MINIMAL).encode("utf-16"),
        rb'{"payload": "\ud800"}',
        rb'{"payload": "\udc00\ud800"}',
        b'{"payload": "\xed\xa0\x80"}',
        b'{"payload": "a\x00b"}',
        b'{"payload": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"payload": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
        b'{"payload": ' + b"9" * 10_000 + b"}",
    ],
)
def test_row_26_invalid_json_is_rejected_at_once(body: bytes) -> None:
    assert len(rejection(body)) < 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([CANARY, "", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=3,
)


# H2, row 31
@settings(max_examples=25)
@given(
    fields=st.dictionaries(st.sampled_from(sorted(SendCallback.model_fields)), json_values),
    truncated=st.booleans(),
)
@example(fields={"hmac_secret": {CANARY: CANARY}}, truncated=False)
@example(fields={"hmac_secret": [CANARY, [CANARY]]}, truncated=False)
def test_row_31_no_error_contains_a_secret(fields: dict[str, Any], *, truncated: bool) -> None:
    body = with_fields(**fields)
    if truncated:
        body = body[:-2]
    text = ""
    try:
        parsed(body)
    except ContractViolationError as error:
        text = str(error)
    assert CANARY not in text


# Row 31
@pytest.mark.parametrize("secret", [CANARY, [CANARY, f"{CANARY}-old"]])
def test_row_31_no_repr_and_no_log_line_contains_a_secret(
    secret: str | list[str], caplog: pytest.LogCaptureFixture
) -> None:
    command = parsed(with_fields(hmac_secret=secret))
    assert CANARY in command.secrets[0]
    message: Message = Message("id-1", JSON, b"")
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("test").error("%r %s", message, command, extra={"command": command})
    assert CANARY not in caplog.text + repr(command) + str(command) + repr(message)
    with pytest.raises(ValidationError) as caught:
        SendCallback.model_validate(MINIMAL | {"hmac_secret": [secret, 5]})
    assert CANARY not in str(caught.value)


def test_a_command_is_immutable() -> None:
    command = parsed(with_fields())
    with pytest.raises(ValidationError):
        command.target_url = "https://other.example/"  # type: ignore[misc]


def test_broker_headers_and_routing_headers_are_not_copied() -> None:
    received = {
        "traceparent": "00-1",
        "tenant": 7,
        "x-ringback-id": "id-1",
        "x-ringback-attempt": 3,
        "x-death": [{"count": 1}],
        "x-first-death-queue": "callbacks.retry.1s",
        "x-delivery-count": 2,
        "CC": ["callbacks"],
        "BCC": ["audit"],
    }
    assert without_broker_headers(received) == {
        "traceparent": "00-1",
        "tenant": 7,
        "x-ringback-id": "id-1",
        "x-ringback-attempt": 3,
    }
    assert without_broker_headers(None) == {}


@pytest.mark.parametrize("identifier", ["order.1795219200", "order.1795219200.5", "1.179521920"])
def test_finding_b14_an_id_that_makes_a_signature_ambiguous_is_rejected(identifier: str) -> None:
    """`ID.TIMESTAMP.BODY` of one request must not be that of another id, time and body."""
    with pytest.raises(ValidationError, match="ambiguous"):
        SendCallback(target_url="https://a.example", hmac_secret="s", payload=1, id=identifier)


@pytest.mark.parametrize("identifier", ["order.7", "1795219200", "1795219200.order", "a.b.c"])
def test_finding_b14_other_ids_with_dots_are_accepted(identifier: str) -> None:
    assert (
        SendCallback(target_url="https://a.example", hmac_secret="s", payload=1, id=identifier).id
        == identifier
    )


def test_n12_unknown_fields_are_ignored_only_from_a_service_of_ringback() -> None:
    newer = with_fields(added_later=1, retry={"delays": [1], "added_later": 1})
    assert "added_later: Extra inputs are not permitted" in rejection(newer)
    assert "added_later" in rejection(newer, replace(JSON, app_id="shop"))
    from_service = parsed(newer, replace(JSON, app_id=APP_ID))
    assert from_service == parsed(with_fields(retry={"delays": [1]}))
    assert "payload: Field required" in rejection(
        b'{"target_url": "https://example.com/", "added_later": 1}', replace(JSON, app_id=APP_ID)
    )
