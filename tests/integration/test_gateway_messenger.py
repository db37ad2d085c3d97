"""U1 to U5 over HTTP: the messenger through the real gateway and subscriptions."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

import pytest
from yarl import URL

from tests.fakes.gateway import Caller, Response, base_url
from tests.fakes.sandbox import Sandbox
from tests.fakes.system import StartSystem, System

FORM = "application/x-www-form-urlencoded"
PASSWORD = "correct horse"
LIMITS = {
    f"RINGBACK_GATEWAY_{name}": "100000"
    for name in ("REGISTRATIONS_PER_ADDRESS", "SIGN_INS_PER_ADDRESS", "SIGN_INS_PER_NAME")
}


@pytest.fixture(scope="module")
def services(start_system: StartSystem) -> Iterator[System]:
    with start_system("subscriptions", "callback", **LIMITS) as started:
        yield started


@pytest.fixture
async def call(services: System) -> AsyncIterator[Caller]:
    async with services.calling() as caller:
        yield caller


def name() -> str:
    return uuid4().hex[:12]


async def registered(call: Caller, name_: str) -> int:
    response = await call("POST", "/users", {"name": name_, "password": PASSWORD})
    assert response.status == 200, response.text
    assert response.json.keys() == {"code", "user_id"}
    assert response.json["code"] == 10
    id_: int = response.json["user_id"]
    return id_


async def signed_in(call: Caller, name_: str) -> str:
    response = await call("POST", "/users/login", {"name": name_, "password": PASSWORD})
    assert response.status == 200, response.text
    assert response.json.keys() == {"code", "token"}
    assert response.json["code"] == 10
    token: str = response.json["token"]
    return token


@pytest.fixture
async def token(call: Caller) -> str:
    """Return the token of a new user."""
    await registered(call, user := name())
    return await signed_in(call, user)


def check(response: Response, status: int, code: int) -> str:
    """Check an error, and return its description."""
    assert (response.status, response.json["code"]) == (status, code), response.text
    assert response.json.keys() == {"code", "description"}
    assert response.headers["Content-Type"].startswith("application/json")
    assert response.headers["Cache-Control"] == "no-store"
    assert response.json["description"]
    return str(response.json["description"])


async def test_u5_a_user_registers_signs_in_sends_a_message_and_signs_out(call: Caller) -> None:
    ann, bob = name(), name()
    ids = [await registered(call, each) for each in (ann, bob)]
    assert all(isinstance(id_, int) for id_ in ids)
    token = await signed_in(call, ann)
    sent = await call("POST", "/messages", {"token": token, "to_id": ids[1], "text": "hi"})
    assert (sent.status, sent.json["code"]) == (200, 10)
    assert sent.json.keys() == {"code", "message_id"}
    assert isinstance(sent.json["message_id"], int)
    out = await call("POST", "/users/logout", {"token": token})
    assert (out.status, out.json) == (200, {"code": 10})
    again = await call("POST", "/messages", {"token": token, "to_id": ids[1], "text": "hi"})
    assert check(again, 401, -1) == "Invalid token"


async def test_u5_bodies_are_json_or_forms_and_tokens_can_be_bearers(call: Caller) -> None:
    async def form(path: str, **fields: str) -> Response:
        return await call("POST", path, raw=urlencode(fields), Content_Type=FORM)

    user = "Ünï çödé +&=%"
    assert len(user) < 15 < len(user.encode())
    created = await form("/users", name=user, password="a&b=c d+%e")
    assert created.json["code"] == 10, created.text
    token = (await form("/users/login", name=user, password="a&b=c d+%e")).json["token"]
    to_id = str(created.json["user_id"])
    assert (await form("/messages", token=token, to_id=to_id, text="hi")).json["code"] == 10
    message = {"to_id": created.json["user_id"], "text": "hi"}
    bearer = f"Bearer {token}"
    assert (await call("POST", "/messages", message, Authorization=bearer)).json["code"] == 10
    both = message | {"token": token}
    assert (await call("POST", "/messages", both, Authorization=bearer)).json["code"] == 10
    for authorization in ("Bearer other", "Basic YTpi", "Bearer"):
        check(await call("POST", "/messages", both, Authorization=authorization), 401, -1)


async def test_u5_a_form_may_end_with_a_separator(call: Caller) -> None:
    raw = f"&name={name()}&&password={PASSWORD.replace(' ', '+')}&"
    registered = await call("POST", "/users", raw=raw, Content_Type=FORM)
    assert registered.json["code"] == 10, registered.text


async def test_u5_a_bearer_token_needs_no_body(call: Caller, token: str) -> None:
    bearer = f"Bearer {token}"
    check(await call("POST", "/events/callback/test", Authorization=bearer), 404, -3)
    check(await call("POST", "/messages", Authorization=bearer), 422, -3)
    for path in ("/events/callback/stop", "/users/logout"):
        assert (await call("POST", path, Authorization=bearer)).json == {"code": 10}, path
    check(await call("POST", "/users/logout", Authorization=bearer), 401, -1)
    check(await call("POST", "/users/logout"), 401, -1)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, -3),
        ({"name": "ann"}, -3),
        ({"password": PASSWORD}, -3),
        ({"name": "", "password": PASSWORD}, -3),
        ({"name": None, "password": PASSWORD}, -3),
        ({"name": 7, "password": PASSWORD}, -3),
        ({"name": "a\0b", "password": PASSWORD}, -3),
        ({"name": "a\nb", "password": PASSWORD}, -3),
        ({"name": "ann", "password": "x" * 1001}, -3),
        ({"name": "ann", "password": PASSWORD, "more": 1}, -3),
        ({"name": "a" * 16, "password": PASSWORD}, -4),
        ({"name": "ü" * 16, "password": PASSWORD}, -4),
        ({"name": "\0" * 16, "password": "short"}, -4),
        ({"name": "a" * 16}, -4),
        ({"name": "ann", "password": "1234567"}, -5),
        ({"name": "ann", "password": ""}, -5),
        ({"name": "a\0b", "password": "ü" * 7}, -5),
    ],
)
async def test_u5_names_and_passwords_have_their_codes(
    call: Caller, fields: dict[str, Any], code: int
) -> None:
    check(await call("POST", "/users", fields), 422, code)


async def test_u5_a_name_of_15_characters_of_4_bytes_and_a_password_of_8_are_enough(
    call: Caller,
) -> None:
    user = name()[:3] + "🦄" * 12
    for expected in ((200, 10), (409, -3)):
        response = await call("POST", "/users", {"name": user, "password": "🦄" * 8})
        assert (response.status, response.json["code"]) == expected, response.text
    response = await call("POST", "/users/login", {"name": user, "password": "🦄" * 8})
    assert response.json["code"] == 10


async def test_u5_a_wrong_name_or_password_is_the_same_error(call: Caller) -> None:
    await registered(call, user := name())
    errors = [
        await call("POST", "/users/login", {"name": name_, "password": password})
        for name_, password in ((user, "wrong horse"), (name(), PASSWORD), ("a" * 99, ""))
    ]
    assert len({check(error, 401, -6) for error in errors}) == 1
    assert all(error.headers["WWW-Authenticate"].startswith("Bearer") for error in errors)
    for fields in ({"name": user}, {"name": user, "password": 7}, {"name": "a\0", "password": ""}):
        check(await call("POST", "/users/login", fields), 422, -3)


async def test_u5_a_message_needs_a_token_then_valid_fields_then_a_user(
    call: Caller, token: str
) -> None:
    message = {"to_id": 1, "text": "hi"}
    for given in ({}, {"token": None}, {"token": 7}, {"token": ""}, {"token": "x" * 5000}):
        status, code = (422, -3) if len(str(given)) > 5000 else (401, -1)
        check(await call("POST", "/messages", message | given), status, code)
    check(await call("POST", "/messages", {"token": "unknown"} | message), 401, -1)
    for fields in (
        {"to_id": "x"},
        {"to_id": 0},
        {"to_id": -1},
        {"to_id": 1 << 63},
        {"to_id": 1.5},
        {"to_id": None},
        {"text": ""},
        {"text": "a\0b"},
        {"text": "x" * 10_001},
        {"text": 7},
        {"from_id": 1},
    ):
        check(await call("POST", "/messages", {"token": token} | message | fields), 422, -3)
    unknown = {"token": token, "to_id": (1 << 63) - 1, "text": "hi"}
    check(await call("POST", "/messages", unknown), 404, -6)


async def test_u5_the_longest_text_fits_in_json_and_in_a_form(call: Caller) -> None:
    id_ = await registered(call, user := name())
    token = await signed_in(call, user)
    text = "🦄" * 10_000
    sent = await call("POST", "/messages", {"token": token, "to_id": id_, "text": text})
    assert sent.json["code"] == 10, sent.text
    form = f"token={token}&to_id={id_}&text={quote(text)}"
    assert (await call("POST", "/messages", raw=form, Content_Type=FORM)).json["code"] == 10
    form += "x" * 20_000
    check(await call("POST", "/messages", raw=form, Content_Type=FORM), 413, -3)


@pytest.mark.parametrize(
    ("raw", "media_type", "status"),
    [
        ("", "application/json", 400),
        ("{", "application/json", 400),
        ('{"name": "\\ud800", "password": "12345678"}', "application/json", 400),
        (b'{"name": "\xff", "password": "12345678"}', "application/json", 400),
        ('{"name": NaN}', "application/json", 400),
        ("[" * 100_000, "application/json", 400),
        ("[]", "application/json", 422),
        ("null", "application/json", 422),
        ("", FORM, 422),
        ("name", FORM, 400),
        ("name=%ff&password=12345678", FORM, 400),
        (b"name=\xff&password=12345678", FORM, 400),
        ("name=a&name=b&password=12345678", FORM, 400),
        ("&".join(f"f{n}=1" for n in range(21)), FORM, 400),
        ("name=a%00b&password=12345678", FORM, 422),
        ("<user/>", "text/xml", 415),
        ("{}", "multipart/form-data", 415),
    ],
)
async def test_u5_a_body_that_cannot_be_read_is_invalid(
    call: Caller, raw: Any, media_type: str, status: int
) -> None:
    check(await call("POST", "/users", raw=raw, Content_Type=media_type), status, -3)


async def test_u5_other_methods_and_unknown_paths_of_the_messenger_have_codes(call: Caller) -> None:
    for method, path in (("GET", "/users"), ("PUT", "/messages"), ("DELETE", "/events/stream")):
        response = await call(method, path)
        check(response, 405, -3)
        assert response.headers["Allow"]
    for path in ("/users/1", "/messages/", "/events", "/events/callback"):
        check(await call("POST", path, {}), 404, -3)
    (await call("POST", "/v1/unknown", {})).problem(404)
    (await call("POST", "/user", {})).problem(404)


async def test_u5_a_service_ticket_is_ignored_and_not_a_token(call: Caller) -> None:
    shop = call.as_client("shop")
    await registered(shop, user := name())
    assert await signed_in(shop, user)
    message = {"to_id": 1, "text": "hi"}
    check(await shop("POST", "/messages", message), 401, -1)
    bad = await call("POST", "/users/login", {"name": user, "password": "x"}, X_Service_Ticket="x")
    check(bad, 401, -6)


@pytest.mark.parametrize(
    "callback",
    [
        "",
        "ftp://example.com/",
        "example.com",
        "https://",
        "https://user:password@example.com/",
        "https://example.com/a b",
        "https://example.com/\n",
        "https://example.com:0/",
        "https://example.com/" + "x" * 2048,
        "javascript:alert(1)",
        7,
        None,
    ],
)
async def test_u1_u5_a_callback_must_be_an_http_url(
    call: Caller, token: str, callback: Any
) -> None:
    response = await call("POST", "/events/callback/start", {"token": token, "callback": callback})
    assert "password" not in check(response, 422, -3)


async def test_u1_u2_a_registered_server_gets_the_events_of_its_user(
    call: Caller, receiver: Sandbox
) -> None:
    id_ = await registered(call, user := name())
    token = await signed_in(call, user)
    mailbox = await receiver.mailbox()
    start = {"token": token, "callback": mailbox}
    started = await call("POST", "/events/callback/start", start)
    assert (started.status, started.json["code"]) == (200, 10), started.text
    assert started.json.keys() == {"code", "secret"}
    assert started.json["secret"].startswith("whsec_")
    await receiver.configure_mailbox(mailbox, secrets=[started.json["secret"]])

    sent = await call("POST", "/messages", {"token": token, "to_id": id_, "text": "hi"})
    [webhook] = await receiver.webhooks(mailbox)
    assert webhook["verified"]
    assert webhook["headers"]["x-ringback-sequence"] == "1"
    body = json.loads(webhook["body"])
    assert isinstance(body["event"].pop("created_at"), int)
    message = {"message_id": sent.json["message_id"], "to_id": id_, "from_id": id_, "text": "hi"}
    assert body == {"type": "new_message", "event": message}

    tested = await call("POST", "/events/callback/test", {"token": token})
    assert (tested.status, tested.json["code"]) == (200, 10), tested.text
    webhook_id = tested.json["webhook_id"]
    [webhook] = await receiver.webhooks(mailbox, webhook_id=webhook_id)
    assert json.loads(webhook["body"])["type"] == "test"

    stopped = await call("POST", "/events/callback/stop", {"token": token})
    assert (stopped.status, stopped.json) == (200, {"code": 10})
    check(await call("POST", "/events/callback/test", {"token": token}), 404, -3)
    check(await call("POST", "/events/callback/stop", {"token": "unknown"}), 401, -1)


async def test_u1_u5_the_other_fields_of_a_callback_are_checked(call: Caller, token: str) -> None:
    start = {"token": token, "callback": "https://example.com/"}
    for fields in ({"fingerprint": "abc"}, {"ordered": 1}, {"ack": "no"}, {"secret": "x"}):
        check(await call("POST", "/events/callback/start", start | fields), 422, -3)
    for path in ("/events/callback/start", "/events/callback/stop", "/events/callback/test"):
        check(await call("POST", path, {"callback": "https://example.com/"}), 401, -1)


async def test_u5_a_query_that_is_not_text_is_not_a_token(call: Caller) -> None:
    for query in ("token=%ff", "token=", "token=%ed%a0%80"):
        check(await call("GET", f"/events/stream?{query}"), 401, -1)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"Authorization: Bearer \xff", b"401"),
        (b"Authorization: Bearer x\r\nAuthorization: Bearer y", b"401"),
        (b"Authorization: Bearer x\r\nLast-Event-ID: \x84", b"422"),
        (b"Authorization: Bearer x\r\nLast-Event-ID: " + b"0" * 101, b"422"),
    ],
)
async def test_u5_headers_of_any_bytes_are_rejected(
    services: System, header: bytes, status: bytes
) -> None:
    port = URL(await base_url(services["gateway"])).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /events/stream HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n")
    async with asyncio.timeout(60):
        assert (await reader.readline()).split()[1] == status
    writer.close()
