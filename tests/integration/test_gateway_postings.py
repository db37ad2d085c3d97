"""E5 over HTTP: postings through the real gateway and mailings."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.fakes.gateway import Caller, Response, ticket
from tests.fakes.mailings_client import MailingsClient, mailings_client
from tests.fakes.sandbox import running_sandbox
from tests.fakes.system import StartSystem, System
from tests.fakes.waiting import until

POSTING = {
    "receivers": "http://auth/api/v1/users/?id=5f0c1f6e-8d0e-4b57-9a3d-0a8b5d5b7a11",
    "template": "sms/phone_confirmation.md",
    "delivery_type": ["sms"],
    "expires_in": "120 sec",
    "template_context": {"secret_code": "1234"},
}
UNSUBSCRIBE_URL = "https://ringback.example.com/v1/unsubscribe"
UNKNOWN = "00000000-0000-4000-8000-000000000000"
MIB = 1_048_576


@pytest.fixture(scope="module")
def services(start_system: StartSystem) -> Iterator[System]:
    settings = {
        "RINGBACK_GATEWAY_REQUEST_TIMEOUT": "2",
        "RINGBACK_SOURCES": "127.0.0.1",
        "RINGBACK_MAILINGS_UNSUBSCRIBE_URL": UNSUBSCRIBE_URL,
    }
    with start_system("mailings", **settings) as started:
        yield started


@pytest.fixture
async def call(services: System) -> AsyncIterator[Caller]:
    async with services.calling() as caller:
        yield caller


@pytest.fixture
async def client(services: System, shared_amqp_url: str) -> AsyncIterator[MailingsClient]:
    """Yield a consumer of the messages that publishes their facts."""
    assert services
    async with mailings_client(shared_amqp_url) as client:
        yield client


@pytest.fixture
async def nine_users() -> AsyncIterator[dict[str, Any]]:
    """Yield a posting to nine users: seven get a required SMS, and two have no phone."""
    async with running_sandbox(users=9) as sandbox:
        users = str(sandbox.url / "auth/api/v1/users/")
        yield POSTING | {"receivers": users, "from_event": "nine"}


async def until_sending(call: Caller, posting: Response) -> tuple[str, list[Any]]:
    """Wait until all messages of a posting are published; return its path and its messages."""
    assert posting.status == 202, posting.text
    path = posting.headers["Location"]
    await until_status(call, path, "sending")
    return path, (await call("GET", f"{path}/messages?status=created")).json["items"]


async def until_status(call: Caller, path: str, status: str) -> dict[str, Any]:
    """Wait until a posting has this status; return its progress."""

    async def reached() -> Any:
        progress = (await call("GET", path)).json
        return progress if progress["status"] == status else None

    found: dict[str, Any] = await until(reached)
    return found


async def response_count(services: System) -> float:
    """Return the number of requests that mailings has responded to."""
    return await services["mailings"].metric("ringback_requests_answered_total")


async def test_e5_a_posting_is_accepted_unchanged_and_its_progress_is_found(
    call: Caller, client: MailingsClient, nine_users: dict[str, Any]
) -> None:
    code = 'ü \\ " }, {'
    context = {"secret_code": code, "text": '\u2028 " }, {', "number": 1.50, "big": 2**70}
    raw = " " + json.dumps(nine_users | {"template_context": context}, indent=1) + "\n"
    accepted = await call("POST", "/v1/postings", raw=raw)
    assert accepted.status == 202, accepted.text
    assert accepted.json.keys() == {"id", "status"}
    assert accepted.json["status"] == "accepted"
    assert accepted.headers["Location"] == f"/v1/postings/{accepted.json['id']}"
    assert accepted.headers["Cache-Control"] == "no-store"
    path, messages = await until_sending(call, accepted)
    await client.settle(accepted.json["id"], messages[1:], "sent")
    await client.settle(accepted.json["id"], messages[:1], "failed")
    found = await until_status(call, path, "done")
    assert found["id"] == accepted.json["id"]
    assert (found["template"], found["from_event"]) == ("sms/phone_confirmation.md", "nine")
    counts = {"created": 0, "sent": 6, "failed": 1, "expired": 0, "skipped": 2}
    assert found["messages"] == counts
    assert found["skipped"] == {"no phone": 2}
    await client.wait_for_users(7)
    assert all(f"your code is {code}. " in json.loads(m.body)["text"] for m in client.messages)


async def test_e5_a_repeat_with_the_same_key_is_the_same_posting_and_another_body_is_409(
    call: Caller,
) -> None:
    body = POSTING | {"from_event": "repeated"}
    first, repeated = [
        await call("POST", "/v1/postings", body, Idempotency_Key="mail-7") for _ in range(2)
    ]
    assert (first.status, repeated.status) == (202, 202)
    assert first.json["id"] == repeated.json["id"]
    other = body | {"template": "sms/other.md"}
    (await call("POST", "/v1/postings", other, Idempotency_Key="mail-7")).problem(409)
    without_key = await call("POST", "/v1/postings", body)
    assert await listed(call, "from_event=repeated") == [without_key.json["id"], first.json["id"]]


async def listed(call: Caller, query: str) -> list[str]:
    """Return the ids of all postings that a query finds, page by page."""
    found: list[str] = []
    cursor = ""
    while True:
        page = await call("GET", f"/v1/postings?{query}{cursor}")
        assert page.status == 200, page.text
        found += [item["id"] for item in page.json["items"]]
        if page.json["next_cursor"] is None:
            return found
        cursor = f"&cursor={page.json['next_cursor']}"


async def test_e7_s9_clients_list_their_own_and_anonymous_postings_newest_first(
    call: Caller,
) -> None:
    before = await listed(call, "limit=1000")
    clients = ("shop", None, "blog", "shop", None)
    created = []
    for number, client in enumerate(clients):
        body = POSTING | {"from_event": f"scan/{number // 4}"}
        accepted = await call.as_client(client)("POST", "/v1/postings", body)
        created.append(accepted.json["id"])
    zero, one, two, three, four = created
    shop = call.as_client("shop")
    page = (await shop("GET", "/v1/postings?limit=2")).json
    assert [item["id"] for item in page["items"]] == [four, three]
    assert page["items"][1]["template"] == POSTING["template"]
    for limit in (1, 2, 4, 5):
        assert (await listed(shop, f"limit={limit}"))[:4] == [four, three, one, zero]
    assert await listed(shop, "from_event=scan/0&limit=1") == [three, one, zero]
    assert await listed(call.as_client("blog"), "from_event=scan%2F0") == [two, one]
    assert await listed(call, "limit=1000") == [four, one, *before]
    assert await listed(call, "from_event=scan") == []


async def test_e5_rejected_fields_are_named(call: Caller) -> None:
    wrong = {"receivers": "ftp://x", "delivery_type": ["fax"], "colour": "red"}
    response = await call("POST", "/v1/postings", wrong)
    assert response.rejected_fields() == {"receivers", "template", "delivery_type.0", "colour"}


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        ("{", 400),
        ('{"template_context": {"x": NaN}}', 400),
        ('{"template_context": {"x": "\\ud800"}}', 400),
        ("[" * 10_000 + "]" * 10_000, 400),
        ('}, "idempotency_key": "x", "y": {', 400),
        (json.dumps(POSTING | {"template_context": {"x": "x" * MIB}}), 413),
    ],
    ids=range(6),
)
async def test_row_15_and_26_invalid_json_and_large_bodies_cause_no_request(
    call: Caller, services: System, raw: str, status: int
) -> None:
    before = await response_count(services)
    (await call("POST", "/v1/postings", raw=raw)).problem(status)
    assert await response_count(services) == before


@pytest.mark.parametrize("value", ['"\\u0000"', "1e999999"])
async def test_row_26_values_that_no_store_accepts_are_422(call: Caller, value: str) -> None:
    raw = json.dumps(POSTING).replace('"1234"', value)
    assert (await call("POST", "/v1/postings", raw=raw)).rejected_fields() == {"template_context"}


async def test_e5_messages_are_listed_page_by_page(
    call: Caller, client: MailingsClient, nine_users: dict[str, Any]
) -> None:
    path, messages = await until_sending(call, await call("POST", "/v1/postings", nine_users))
    *failed, sent = messages[:4]
    posting = path.rpartition("/")[2]
    await client.settle(posting, failed, "failed")
    await client.settle(posting, [sent], "sent")

    async def settled() -> bool:
        return bool((await call("GET", path)).json["messages"]["sent"])

    await until(settled)
    page = (await call("GET", f"{path}/messages?status=failed&limit=2")).json
    assert [item["id"] for item in page["items"]] == [each["id"] for each in failed[:2]]
    assert page["items"][0]["reason"] == "it failed"
    query = f"status=failed&limit=2&cursor={page['next_cursor']}"
    last = (await call("GET", f"{path}/messages?{query}")).json
    assert [item["user_id"] for item in last["items"]] == [failed[2]["user_id"]]
    assert last["next_cursor"] is None


@pytest.mark.parametrize("resource", ["messages", "postings"])
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=1000000000", "limit"),
        ("limit=0", "limit"),
        ("limit=many", "limit"),
        ("cursor=7", "cursor"),
        ("status=lost", "status"),
        ("from_event=two%20words", "from_event"),
        ("colour=red", "colour"),
        ("limit=1&limit=2", "limit"),
    ],
)
async def test_row_33_an_invalid_parameter_is_422_and_named(
    call: Caller, resource: str, query: str, field: str
) -> None:
    path = "/v1/postings"
    if resource == "messages":
        path = (await call("POST", path, POSTING)).headers["Location"] + "/messages"
    assert (await call("GET", f"{path}?{query}")).rejected_fields() == {field}


@pytest.mark.parametrize("other_client", ["other_client", None])
@pytest.mark.parametrize("path", ["", "/messages"])
async def test_s9_the_posting_of_another_client_looks_as_if_it_did_not_exist(
    call: Caller, path: str, other_client: str | None
) -> None:
    owner, other = call.as_client("owner"), call.as_client(other_client)
    own_path = (await owner("POST", "/v1/postings", POSTING)).headers["Location"]
    foreign = await other("GET", own_path + path)
    missing = await other("GET", f"/v1/postings/{UNKNOWN}{path}")
    assert foreign.problem(404) == missing.problem(404)
    assert (await owner("GET", own_path + path)).status == 200


async def test_s9_and_row_33_invalid_tickets_and_ids_cause_no_request(
    call: Caller, services: System
) -> None:
    before = await response_count(services)
    expired = ticket("shop", exp=int(time.time()) - 1)
    for invalid in ("canary", expired):
        (await call("POST", "/v1/postings", POSTING, X_Service_Ticket=invalid)).problem(401)
        (await call("GET", "/v1/postings", X_Service_Ticket=invalid)).problem(401)
        (await call("GET", f"/v1/postings/{UNKNOWN}", X_Service_Ticket=invalid)).problem(401)
    for invalid in ("7", "x" * 5000, "%00", "..%2f"):
        (await call("GET", f"/v1/postings/{invalid}")).problem(404)
        (await call("GET", f"/v1/postings/{invalid}/messages")).problem(404)
    assert await response_count(services) == before


async def test_after_a_504_a_repeat_with_the_same_key_is_one_posting(
    call: Caller, services: System
) -> None:
    body = POSTING | {"from_event": "lost"}

    async def create() -> Response:
        return await call("POST", "/v1/postings", body, Idempotency_Key="lost-7")

    services["mailings"].signal(signal.SIGSTOP)
    try:
        loop = asyncio.get_running_loop()
        started = loop.time()
        assert "unknown" in (await create()).problem(504)["detail"]
        assert 1.9 < loop.time() - started < 4
    finally:
        services["mailings"].signal(signal.SIGCONT)
    repeated = await create()
    assert repeated.status == 202
    assert await listed(call, "from_event=lost") == [repeated.json["id"]]


async def test_the_log_lines_have_the_id_of_the_posting_and_none_of_its_content(
    call: Caller, services: System
) -> None:
    body = POSTING | {"template_context": {"secret_code": "code-canary"}}
    caller = call.as_client("shop")
    identity = (await caller("POST", "/v1/postings", body)).json["id"]
    await caller("GET", f"/v1/postings/{identity}")
    lines = await until(
        lambda: (
            len(lines := services["gateway"].logged("http request", posting_id=identity)) == 2
            and lines
        )
    )
    assert [line["method"] for line in lines] == ["POST", "GET"]
    assert {line["client_id"] for line in lines} == {"shop"}
    assert services["mailings"].logged("posting accepted", posting_id=identity, client_id="shop")
    assert not any("canary" in service.output for service in services.values())
    assert 'route="/v1/postings/{id}"' in (await call("GET", "/metrics")).text


# E4
async def test_finding_c14_ringback_answers_the_one_click_post_of_its_own_links_only(
    services: System, call: Caller, client: MailingsClient
) -> None:
    async with running_sandbox(users=9) as sandbox:
        users = await sandbox.get("/auth/api/v1/users/", page_size=9)
        user = next(each for each in users if each["is_active"] and each["email_notifications"])
        body = {
            "receivers": str(sandbox.url / f"auth/api/v1/users/{user['id']}/"),
            "template": "email/welcome.md",
            "delivery_type": ["email"],
            "template_context": {"username": "ann"},
        }

        async def outcome() -> dict[str, int]:
            path = (await call("POST", "/v1/postings", body)).headers["Location"]
            progress = await until(lambda: _ended(call, path))
            skipped: dict[str, int] = progress["skipped"]
            return skipped

        assert await outcome() == {}
        message = await until(
            lambda: next(
                (each for each in client.messages if b"unsubscribe_url" in each.body), None
            )
        )
        url = json.loads(message.body)["unsubscribe_url"]
        assert user["email"] not in url
        path = url.removeprefix("https://ringback.example.com")

        page = await call("GET", path)  # as a virus scanner does
        assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert page.headers["Referrer-Policy"] == "no-referrer"
        assert await outcome() == {}

        form = {"Content_Type": "application/x-www-form-urlencoded"}
        for _ in range(2):
            response = await call("POST", path, raw="List-Unsubscribe=One-Click", **form)
            assert (response.status, "You are unsubscribed" in response.text) == (200, True)
            assert await outcome() == {"unsubscribed": 1}

        last = "E" if path.endswith("A") else "A"
        for forged in ("/v1/unsubscribe", "/v1/unsubscribe?token=", path[:-1] + last):
            problem = (await call("POST", forged, raw="", **form)).problem(422)
            assert [error["field"] for error in problem["errors"]] == ["token"]

        undone = await call("POST", path, raw="subscribed=yes", **form)
        assert "You are subscribed" in undone.text
        assert await outcome() == {}
    assert path.partition("=")[2] not in services["gateway"].output + services["mailings"].output


async def _ended(call: Caller, path: str) -> Any:
    progress = (await call("GET", path)).json
    return progress if progress["status"] in ("sending", "done") else None
