"""S9 and row 33: who calls is proven, and nobody touches what is another's."""

import base64
import json
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.fakes.gateway import Caller, Reply, base_url, calling, gateway, ticket
from tests.fakes.scheduler import FakeScheduler, fake_scheduler
from tests.fakes.service import Service
from tests.fakes.waiting import until

CALLBACK = {
    "url": "https://example.com/hook",
    "run_at": "2030-01-01T12:00:00Z",
    "group_key": "g",
    "event_key": "e",
}


@pytest.fixture(scope="module")
def gateway_service(
    shared_amqp_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with gateway(tmp_path_factory.mktemp("gateway"), shared_amqp_url) as it:
        yield it


@pytest.fixture
async def scheduler(shared_amqp_url: str) -> AsyncIterator[FakeScheduler]:
    async with fake_scheduler(shared_amqp_url) as it:
        yield it


@pytest.fixture
async def call(gateway_service: Service, scheduler: FakeScheduler) -> AsyncIterator[Caller]:
    assert scheduler
    await until(gateway_service.is_ready)
    async with calling(await base_url(gateway_service)) as it:
        yield it


@pytest.mark.parametrize("header", ["X-Service-Ticket", "Authorization"])
async def test_s9_the_client_id_of_the_ticket_is_passed_on(
    call: Caller, scheduler: FakeScheduler, header: str
) -> None:
    signed = ticket("Shop & Söhne")
    value = signed if header == "X-Service-Ticket" else f"bearer {signed}"
    assert (await call("POST", "/v1/callbacks", CALLBACK, **{header: value})).status == 201
    assert scheduler.asked[-1][1] == "Shop & Söhne"
    message = scheduler.messages[-1]
    assert signed not in json.dumps(dict(message.headers))
    assert signed.encode() not in message.body


async def test_s9_a_client_id_can_only_come_from_a_ticket(
    call: Caller, scheduler: FakeScheduler
) -> None:
    forged = {"x_ringback_client_id": "victim", "X_Client_Id": "victim"}
    await call("POST", "/v1/callbacks", CALLBACK, **forged)
    assert scheduler.asked[-1][1] is None
    await call("POST", "/v1/callbacks", CALLBACK | {"client_id": "victim"}, **forged)
    assert scheduler.asked[-1][1] is None


OPERATIONS = [
    ("GET", "/v1/callbacks/{id}", None),
    ("PATCH", "/v1/callbacks/{id}", {"delay": 5}),
    ("DELETE", "/v1/callbacks/{id}", None),
    ("GET", "/v1/groups/g/callbacks/e", None),
    ("PATCH", "/v1/groups/g/callbacks/e", {"delay": 5}),
    ("DELETE", "/v1/groups/g/callbacks/e", None),
]


@pytest.mark.parametrize(("method", "path", "body"), OPERATIONS)
@pytest.mark.parametrize("stranger", ["stranger", None])
async def test_s9_another_clients_event_is_not_found_by_any_operation(
    call: Caller, method: str, path: str, body: object, stranger: str | None
) -> None:
    owner = call.as_client("owner")
    mine = (await owner("POST", "/v1/callbacks", CALLBACK)).json["id"]
    asked = path.replace("{id}", mine)
    theirs = await call.as_client(stranger)(method, asked, body)
    nobodys = await call.as_client(stranger)(
        method, path.replace("{id}", "00000000-0000-4000-8000-000000000000"), body
    )
    # Word for word as if it did not exist.
    assert theirs.problem(404) == nobodys.problem(404)
    assert (await owner(method, asked, body)).status == 200


@pytest.mark.parametrize("stranger", ["stranger", None])
async def test_s9_lists_groups_and_retries_hold_nothing_of_another_client(
    call: Caller, stranger: str | None
) -> None:
    mine = (await call.as_client("owner")("POST", "/v1/callbacks", CALLBACK)).json["id"]
    theirs = call.as_client(stranger)
    for answer in (
        await theirs("GET", "/v1/callbacks"),
        await theirs("GET", "/v1/callbacks?group_key=g&event_key=e"),
        await theirs("GET", "/v1/groups/g/callbacks"),
        await theirs("DELETE", "/v1/groups/g/callbacks"),
        await theirs("POST", "/v1/callbacks/retry", {"group_key": "g"}),
    ):
        assert mine not in answer.text


def unsigned(client: str) -> str:
    header, payload, _ = ticket(client).split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    assert header != none
    return f"{none}.{payload}."


BAD = {
    "no JWT": "ticket-canary",
    "empty": "",
    "alg none": unsigned("canary"),
    "another key": ticket("canary", key="another-key-canary-of-32-characters"),
    "expired": ticket("canary", exp=int(time.time()) - 1),
    "no end": ticket("canary", exp=None),
    "not yet": ticket("canary", nbf=int(time.time()) + 600),
    "for another": ticket("canary", aud="someone-else"),
    "our own, for a client": ticket("canary", iss="ringback", aud="canary"),
    "no subject": ticket(""),
    "a number for a subject": ticket("x", sub=7),
    "control character": ticket("canary\n"),
    "endless": "x" * 100_000,
}


def refused(answer: Reply) -> str:
    """It is a 401 that says how to do better; gives its detail."""
    detail = str(answer.problem(401)["detail"])
    challenge = answer.headers["WWW-Authenticate"]
    assert challenge.startswith('Bearer realm="ringback"')
    assert "canary" not in answer.text + challenge
    return detail


@pytest.mark.parametrize("bad", BAD)
async def test_row_33_a_bad_ticket_is_401_whatever_is_asked(
    call: Caller, scheduler: FakeScheduler, gateway_service: Service, bad: str
) -> None:
    asked = len(scheduler.asked)
    given = BAD[bad]
    if len(given) > 8000:  # aiohttp refuses such a header before anybody looks at it
        answer = await call("GET", "/v1/callbacks", X_Service_Ticket=given)
        assert 400 <= answer.status < 500
        return
    answer = await call("POST", "/v1/callbacks", CALLBACK, X_Service_Ticket=given)
    refused(answer)
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
    refused(await call("GET", "/v1/callbacks", Authorization=f"Bearer {given}"))
    assert len(scheduler.asked) == asked
    assert "canary" not in gateway_service.output


async def test_row_33_other_schemes_and_two_tickets_are_401(call: Caller) -> None:
    refused(await call("GET", "/v1/callbacks", Authorization="Basic dXNlcjpwYXNz"))
    both = {"X_Service_Ticket": ticket("a"), "Authorization": f"Bearer {ticket('b')}"}
    refused(await call("GET", "/v1/callbacks", **both))


async def test_no_ticket_is_needed_to_read_about_the_interface(call: Caller) -> None:
    for path in ("/openapi.json", "/asyncapi.json", "/docs/", "/healthz", "/readyz", "/metrics"):
        assert (await call("GET", path, X_Service_Ticket="bad")).status == 200


async def test_s9_anonymous_callers_are_refused_where_that_is_set(
    shared_amqp_url: str, scheduler: FakeScheduler, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = {"RINGBACK_GATEWAY_ANONYMOUS": "false"}
    assert scheduler
    with gateway(tmp_path_factory.mktemp("closed"), shared_amqp_url, settings) as service:
        await service.ready()
        async with calling(await base_url(service)) as call:
            answer = await call("GET", "/v1/callbacks")
            assert "ticket is required" in refused(answer)
            assert "error=" not in answer.headers["WWW-Authenticate"]
            assert (await call.as_client("shop")("GET", "/v1/callbacks")).status == 200
            assert (await call("GET", "/docs/")).status == 200
