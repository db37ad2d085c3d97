"""S9 and row 33: clients are authenticated, and isolated from each other."""

import base64
import json
import time

import pytest

from shared.security.jwks import new_signing_key, published_jwks, signing_keys
from tests.fakes.gateway import Caller, Response, base_url, calling, gateway, ticket
from tests.fakes.scheduler import FakeScheduler
from tests.fakes.service import Service

CALLBACK = {
    "url": "https://example.com/hook",
    "run_at": "2030-01-01T12:00:00Z",
    "group_key": "g",
    "event_key": "e",
}


@pytest.mark.parametrize("header", ["X-Service-Ticket", "Authorization"])
async def test_s9_the_client_id_of_the_ticket_is_passed_on(
    call: Caller, scheduler: FakeScheduler, header: str
) -> None:
    signed = ticket("Shop & Söhne")
    value = signed if header == "X-Service-Ticket" else f"bearer {signed}"
    assert (await call("POST", "/v1/callbacks", CALLBACK, **{header: value})).status == 201
    assert scheduler.requests[-1][1] == "Shop & Söhne"
    message = scheduler.messages[-1]
    assert signed not in json.dumps(dict(message.headers))
    assert signed.encode() not in message.body


async def test_s9_only_a_ticket_can_set_the_client_id(
    call: Caller, scheduler: FakeScheduler
) -> None:
    forged = {"x_ringback_client_id": "victim", "X_Client_Id": "victim"}
    await call("POST", "/v1/callbacks", CALLBACK, **forged)
    assert scheduler.requests[-1][1] is None
    await call("POST", "/v1/callbacks", CALLBACK | {"client_id": "victim"}, **forged)
    assert scheduler.requests[-1][1] is None


@pytest.mark.parametrize("client", ["ringback.mailings", "ringback.x", "ringback."])
async def test_m4_no_ticket_names_a_service_of_ringback(
    call: Caller, scheduler: FakeScheduler, client: str
) -> None:
    before = len(scheduler.requests)
    response = await call.as_client(client)("GET", "/v1/callbacks")
    assert "must not begin with ringback." in response.problem(401)["detail"]
    assert len(scheduler.requests) == before


OPERATIONS = [
    ("GET", "/v1/callbacks/{id}", None),
    ("PATCH", "/v1/callbacks/{id}", {"delay": 5}),
    ("DELETE", "/v1/callbacks/{id}", None),
    ("GET", "/v1/groups/g/callbacks/e", None),
    ("PATCH", "/v1/groups/g/callbacks/e", {"delay": 5}),
    ("DELETE", "/v1/groups/g/callbacks/e", None),
]


@pytest.mark.parametrize(("method", "path", "body"), OPERATIONS)
@pytest.mark.parametrize("other_client", ["other_client", None])
async def test_s9_no_operation_finds_the_callback_of_another_client(
    call: Caller, method: str, path: str, body: object, other_client: str | None
) -> None:
    owner = call.as_client("owner")
    callback_id = (await owner("POST", "/v1/callbacks", CALLBACK)).json["id"]
    own_path = path.replace("{id}", callback_id)
    foreign = await call.as_client(other_client)(method, own_path, body)
    missing = await call.as_client(other_client)(
        method, path.replace("{id}", "00000000-0000-4000-8000-000000000000"), body
    )
    # The response is the same as for a callback that does not exist.
    assert foreign.problem(404) == missing.problem(404)
    assert (await owner(method, own_path, body)).status == 200


@pytest.mark.parametrize("other_client", ["other_client", None])
async def test_s9_lists_groups_and_retries_exclude_callbacks_of_other_clients(
    call: Caller, other_client: str | None
) -> None:
    callback_id = (await call.as_client("owner")("POST", "/v1/callbacks", CALLBACK)).json["id"]
    other_caller = call.as_client(other_client)
    for response in (
        await other_caller("GET", "/v1/callbacks"),
        await other_caller("GET", "/v1/callbacks?group_key=g&event_key=e"),
        await other_caller("GET", "/v1/groups/g/callbacks"),
        await other_caller("DELETE", "/v1/groups/g/callbacks"),
        await other_caller("POST", "/v1/callbacks/retry", {"group_key": "g"}),
    ):
        assert callback_id not in response.text


def unsigned(client: str) -> str:
    header, payload, _ = ticket(client).split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    assert header != none
    return f"{none}.{payload}."


INVALID = {
    "not a JWT": "ticket-canary",
    "empty": "",
    "alg none": unsigned("canary"),
    "another key": ticket("canary", key="another-key-canary-of-32-characters"),
    "expired": ticket("canary", exp=int(time.time()) - 1),
    "no expiry": ticket("canary", exp=None),
    "not valid yet": ticket("canary", nbf=int(time.time()) + 86_400),
    "another audience": ticket("canary", aud="someone-else"),
    "issued by Ringback for a client": ticket("canary", iss="ringback", aud="canary"),
    "no subject": ticket(""),
    "a number as the subject": ticket("x", sub=7),
    "control character": ticket("canary\n"),
    "very long": "x" * 100_000,
}


def rejected(response: Response) -> str:
    """Check that the response is a 401 with a challenge; return its detail."""
    detail = str(response.problem(401)["detail"])
    challenge = response.headers["WWW-Authenticate"]
    assert challenge.startswith('Bearer realm="ringback"')
    assert "canary" not in response.text + challenge
    return detail


@pytest.mark.parametrize("case", INVALID)
async def test_row_33_an_invalid_ticket_is_401(
    call: Caller, scheduler: FakeScheduler, gateway_service: Service, case: str
) -> None:
    before = len(scheduler.requests)
    invalid = INVALID[case]
    if len(invalid) > 8000:  # aiohttp itself rejects such a header
        response = await call("GET", "/v1/callbacks", X_Service_Ticket=invalid)
        assert 400 <= response.status < 500
        return
    response = await call("POST", "/v1/callbacks", CALLBACK, X_Service_Ticket=invalid)
    rejected(response)
    assert 'error="invalid_token"' in response.headers["WWW-Authenticate"]
    rejected(await call("GET", "/v1/callbacks", Authorization=f"Bearer {invalid}"))
    assert len(scheduler.requests) == before
    assert "canary" not in gateway_service.output


async def test_row_33_other_schemes_and_two_tickets_are_401(call: Caller) -> None:
    rejected(await call("GET", "/v1/callbacks", Authorization="Basic dXNlcjpwYXNz"))
    both = {"X_Service_Ticket": ticket("a"), "Authorization": f"Bearer {ticket('b')}"}
    rejected(await call("GET", "/v1/callbacks", **both))


async def test_the_api_documents_and_probes_need_no_ticket(call: Caller) -> None:
    for path in ("/openapi.json", "/asyncapi.json", "/docs/", "/healthz", "/readyz", "/metrics"):
        assert (await call("GET", path, X_Service_Ticket="bad")).status == 200


async def test_s9_a_setting_rejects_anonymous_requests(
    shared_amqp_url: str, scheduler: FakeScheduler, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = {"RINGBACK_GATEWAY_ANONYMOUS": "false"}
    assert scheduler
    with gateway(tmp_path_factory.mktemp("closed"), shared_amqp_url, settings) as service:
        await service.ready()
        async with calling(await base_url(service)) as call:
            response = await call("GET", "/v1/callbacks")
            assert "ticket is required" in rejected(response)
            assert "error=" not in response.headers["WWW-Authenticate"]
            assert (await call.as_client("shop")("GET", "/v1/callbacks")).status == 200
            assert (await call("GET", "/docs/")).status == 200


# S9
async def test_finding_a15_the_public_keys_are_published_and_the_ticket_header_is_a_setting(
    shared_amqp_url: str, scheduler: FakeScheduler, tmp_path_factory: pytest.TempPathFactory
) -> None:
    key = new_signing_key()
    settings = {
        "RINGBACK_GATEWAY_ANONYMOUS": "false",
        "RINGBACK_TICKET_SIGNING_KEY": key,
        "RINGBACK_TICKET_HEADER": "X-Ya-Service-Ticket",
    }
    with gateway(tmp_path_factory.mktemp("signing"), shared_amqp_url, settings) as service:
        await service.ready()
        async with calling(await base_url(service)) as call:
            response = await call("GET", "/.well-known/jwks.json")
            assert response.status == 200
            assert response.headers["Cache-Control"] == "public, max-age=300"
            assert response.json == published_jwks(signing_keys(key))
            assert json.loads(key)["d"] not in response.text
            call_with = {"X_Ya_Service_Ticket": ticket("shop")}
            assert (await call("POST", "/v1/callbacks", CALLBACK, **call_with)).status == 201
            assert scheduler.requests[-1][1] == "shop"
            without = await call("GET", "/v1/callbacks", X_Service_Ticket=ticket("shop"))
            assert "in the header X-Ya-Service-Ticket" in rejected(without)
            schemes = (await call("GET", "/openapi.json")).json["components"]["securitySchemes"]
            assert schemes["ticket"]["name"] == "X-Ya-Service-Ticket"
            channels = (await call("GET", "/asyncapi.json")).json["channels"]
            messages = channels["schedules.schedule"]["messages"]
            headers = messages["ScheduleCallback"]["headers"]["properties"]
            assert list(headers) == ["X-Ya-Service-Ticket"]


async def test_without_a_signing_key_no_key_is_published(call: Caller) -> None:
    assert (await call("GET", "/.well-known/jwks.json")).json == {"keys": []}
    assert (await call("POST", "/.well-known/jwks.json", {})).status == 405
