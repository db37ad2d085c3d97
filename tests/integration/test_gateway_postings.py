"""E5 over HTTP: what callers see of postings, and what mailings is asked."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from shared.contracts.posting_requests import PostingMessage
from tests.fakes.gateway import Caller, base_url, calling, gateway, ticket
from tests.fakes.mailings import AT, FakeMailings, fake_mailings
from tests.fakes.service import Service
from tests.fakes.waiting import until

POSTING = {
    "receivers": "http://auth/api/v1/users/?id=5f0c1f6e-8d0e-4b57-9a3d-0a8b5d5b7a11",
    "template": "sms/phone_confirmation.md",
    "delivery_type": ["sms"],
    "expires_in": "120 sec",
    "template_context": {"secret_code": "1234"},
}
UNKNOWN = "00000000-0000-4000-8000-000000000000"
MIB = 1_048_576


@pytest.fixture(scope="module")
def gateway_service(
    shared_amqp_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    settings = {"RINGBACK_GATEWAY_REQUEST_TIMEOUT": "2"}
    with gateway(tmp_path_factory.mktemp("gateway"), shared_amqp_url, settings) as it:
        yield it


@pytest.fixture
async def mailings(shared_amqp_url: str) -> AsyncIterator[FakeMailings]:
    async with fake_mailings(shared_amqp_url) as it:
        yield it


@pytest.fixture
async def call(gateway_service: Service) -> AsyncIterator[Caller]:
    async with calling(await base_url(gateway_service)) as it:
        await until(lambda: gateway_service.logged("broker is ready"))
        yield it


async def test_e5_without_mailings_503_says_so_and_the_gateway_is_none_the_worse(
    call: Caller, gateway_service: Service
) -> None:
    answer = await call("POST", "/v1/postings", POSTING)
    assert "mailings: nobody takes such requests" in answer.problem(503)["detail"]
    assert int(answer.headers["Retry-After"]) > 0
    assert not {"mailings", "ingestion"} & (await gateway_service.parts()).keys()


async def test_e5_taken_in_as_it_came_and_found_again(call: Caller, mailings: FakeMailings) -> None:
    context = {"text": 'ü \u2028 \\ " }, {', "number": 1.50, "big": 2**70}
    raw = " " + json.dumps(POSTING | {"template_context": context}, indent=1) + "\n"
    accepted = await call("POST", "/v1/postings", raw=raw)
    assert accepted.status == 202, accepted.text
    assert accepted.json.keys() == {"id", "status"}
    assert accepted.json["status"] == "accepted"
    assert accepted.headers["Location"] == f"/v1/postings/{accepted.json['id']}"
    assert accepted.headers["Cache-Control"] == "no-store"
    operation, client, body = mailings.asked[-1]
    assert (operation, client) == ("CreatePosting", None)
    assert raw.encode() in body
    mailings.progress = {
        "status": "sending",
        "receivers": 3,
        "messages": {"sent": 1, "skipped": 2},
        "skipped": {"has no phone": 2},
    }
    found = await call("GET", accepted.headers["Location"])
    assert found.status == 200
    assert found.json["id"] == accepted.json["id"]
    assert found.json["template"] == "sms/phone_confirmation.md"
    assert found.json["messages"] == {"sent": 1, "skipped": 2}
    assert found.json["skipped"] == {"has no phone": 2}


async def test_e5_idempotency_key_a_repeat_answers_the_same_another_body_is_409(
    call: Caller, mailings: FakeMailings
) -> None:
    first, again = [
        await call("POST", "/v1/postings", POSTING, Idempotency_Key="mail-7") for _ in range(2)
    ]
    assert (first.status, again.status) == (202, 202)
    assert first.json == again.json
    assert json.loads(mailings.asked[-1][2])["idempotency_key"] == "mail-7"
    other = POSTING | {"template": "sms/other.md"}
    (await call("POST", "/v1/postings", other, Idempotency_Key="mail-7")).problem(409)
    fresh = await call("POST", "/v1/postings", POSTING)
    assert fresh.json != first.json


async def test_e5_wrong_fields_are_named_as_mailings_found_them(
    call: Caller, mailings: FakeMailings
) -> None:
    assert mailings.asked == []
    wrong = {"receivers": "ftp://x", "delivery_type": ["fax"], "colour": "red"}
    answer = await call("POST", "/v1/postings", wrong)
    assert answer.wrong_fields() == {"receivers", "template", "delivery_type.0", "colour"}


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
async def test_row_15_and_26_what_is_no_json_or_too_large_is_asked_of_nobody(
    call: Caller, mailings: FakeMailings, raw: str, status: int
) -> None:
    (await call("POST", "/v1/postings", raw=raw)).problem(status)
    assert mailings.asked == []


@pytest.mark.parametrize("value", ['"\\u0000"', "1e999999"])
async def test_row_26_what_no_store_takes_is_422(
    call: Caller, mailings: FakeMailings, value: str
) -> None:
    assert mailings.asked == []
    raw = json.dumps(POSTING).replace('"1234"', value)
    assert (await call("POST", "/v1/postings", raw=raw)).wrong_fields() == {"template_context"}


async def test_e5_messages_page_by_page_with_every_parameter_passed_on(
    call: Caller, mailings: FakeMailings
) -> None:
    posting = (await call("POST", "/v1/postings", POSTING)).headers["Location"]
    mailings.messages = [message(n, "sent" if n % 2 else "failed") for n in range(5)]
    path = f"{posting}/messages?status=failed&limit=2"
    page = await call("GET", path)
    assert page.status == 200
    assert [item["user_id"] for item in page.json["items"]] == ["0", "2"]
    assert page.json["items"][0]["why"] == "refused"
    last = (await call("GET", f"{path}&cursor={page.json['next_cursor']}")).json
    assert [item["user_id"] for item in last["items"]] == ["4"]
    assert last["next_cursor"] is None
    asked = json.loads(mailings.asked[-1][2])
    assert asked.keys() == {"id", "status", "limit", "cursor"}


def message(number: int, status: str) -> Any:

    return PostingMessage.model_validate(
        {
            "id": f"00000000-0000-4000-8000-{number:012}",
            "user_id": str(number),
            "way": "sms",
            "status": status,
            "why": "refused" if status == "failed" else None,
            "created_at": AT,
            "settled_at": AT,
        }
    )


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=1000000000", "limit"),
        ("limit=0", "limit"),
        ("limit=many", "limit"),
        ("status=lost", "status"),
        ("colour=red", "colour"),
        ("limit=1&limit=2", "limit"),
    ],
)
async def test_row_33_a_wrong_parameter_is_422_and_named(
    call: Caller, mailings: FakeMailings, query: str, field: str
) -> None:
    assert mailings
    path = (await call("POST", "/v1/postings", POSTING)).headers["Location"] + "/messages"
    assert (await call("GET", f"{path}?{query}")).wrong_fields() == {field}


@pytest.mark.parametrize("stranger", ["stranger", None])
@pytest.mark.parametrize("path", ["", "/messages"])
async def test_s9_anothers_posting_is_not_found_word_for_word_as_if_it_were_not_there(
    call: Caller, mailings: FakeMailings, path: str, stranger: str | None
) -> None:
    owner, other = call.as_client("owner"), call.as_client(stranger)
    mine = (await owner("POST", "/v1/postings", POSTING)).headers["Location"]
    assert mailings.asked[-1][1] == "owner"
    theirs = await other("GET", mine + path)
    nobodys = await other("GET", f"/v1/postings/{UNKNOWN}{path}")
    assert theirs.problem(404) == nobodys.problem(404)
    assert mailings.asked[-1][1] == stranger
    assert (await owner("GET", mine + path)).status == 200


async def test_s9_and_row_33_bad_tickets_and_no_ids_are_asked_of_nobody(
    call: Caller, mailings: FakeMailings
) -> None:
    expired = ticket("shop", exp=int(time.time()) - 1)
    for given in ("canary", expired):
        (await call("POST", "/v1/postings", POSTING, X_Service_Ticket=given)).problem(401)
        (await call("GET", f"/v1/postings/{UNKNOWN}", X_Service_Ticket=given)).problem(401)
    for no_id in ("7", "x" * 5000, "%00", "..%2f"):
        (await call("GET", f"/v1/postings/{no_id}")).problem(404)
        (await call("GET", f"/v1/postings/{no_id}/messages")).problem(404)
    assert mailings.asked == []


async def test_no_answer_is_504_in_time_and_a_repeat_with_the_same_key_is_one_posting(
    call: Caller, mailings: FakeMailings
) -> None:
    async def ask() -> Any:
        return await call("POST", "/v1/postings", POSTING, Idempotency_Key="lost-7")

    mailings.silent = True
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert "unknown" in (await ask()).problem(504)["detail"]
    assert 1.9 < loop.time() - started < 4
    mailings.silent = False
    assert (await ask()).json["id"] == (await ask()).json["id"]


async def test_a_postings_log_lines_name_it_and_hold_nothing_of_it(
    call: Caller, mailings: FakeMailings, gateway_service: Service
) -> None:
    assert mailings
    body = POSTING | {"template_context": {"secret_code": "code-canary"}}
    mine = call.as_client("shop")
    identity = (await mine("POST", "/v1/postings", body)).json["id"]
    await mine("GET", f"/v1/postings/{identity}")
    lines = await until(
        lambda: (
            len(told := gateway_service.logged("http request", posting_id=identity)) == 2 and told
        )
    )
    assert [line["method"] for line in lines] == ["POST", "GET"]
    assert {line["client_id"] for line in lines} == {"shop"}
    assert "canary" not in gateway_service.output
    assert 'route="/v1/postings/{id}"' in (await call("GET", "/metrics")).text
