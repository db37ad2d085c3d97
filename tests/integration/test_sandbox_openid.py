"""The OpenID provider of the sandbox: it is as strict as a real one."""

import base64
import hashlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet
from yarl import URL

from services.sandbox import openid
from services.sandbox.settings import OIDC_CLIENT_ID, SandboxSettings
from tests.fakes.sandbox import Sandbox, running_sandbox

SECRET = SandboxSettings().oidc_secret.get_secret_value()
BASIC = {"Authorization": aiohttp.encode_basic_auth(OIDC_CLIENT_ID, SECRET)}
VERIFIER = "v" * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode()[:43]
HOME = "http://127.0.0.1:8081/sign-in/callback"
REQUEST = {
    "client_id": OIDC_CLIENT_ID,
    "redirect_uri": HOME,
    "response_type": "code",
    "scope": "openid profile",
    "state": "the state",
    "nonce": "the-nonce",
    "code_challenge": CHALLENGE,
    "code_challenge_method": "S256",
    "as": "omar",
}


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with running_sandbox() as sandbox:
        yield sandbox


async def authorize(sandbox: Sandbox, **changes: str | None) -> tuple[int, URL]:
    """Return the status and the location of the response to a request for authorization."""
    query = {name: value for name, value in (REQUEST | changes).items() if value is not None}
    async with sandbox.session.get(
        "/oidc/authorize", params=query, allow_redirects=False
    ) as response:
        return response.status, URL(response.headers.get("Location", ""))


async def redeem(
    sandbox: Sandbox, code: str, headers: Mapping[str, str] = BASIC, **changes: str
) -> tuple[int, Any]:
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": HOME,
        "code_verifier": VERIFIER,
    } | changes
    async with sandbox.session.post("/oidc/token", data=form, headers=headers) as response:
        return response.status, await response.json()


async def code(sandbox: Sandbox) -> str:
    status, location = await authorize(sandbox)
    assert status == 302
    return location.query["code"]


async def test_a_code_becomes_signed_claims(sandbox: Sandbox) -> None:
    discovery = await sandbox.get("/oidc/.well-known/openid-configuration")
    status, location = await authorize(sandbox)
    assert (status, location.query["state"]) == (302, "the state")
    assert location.query["iss"] == discovery["issuer"]
    status, tokens = await redeem(sandbox, location.query["code"])
    assert status == 200
    keys = KeySet.import_key_set(await sandbox.get("/oidc/jwks"))
    claims = jwt.decode(tokens["id_token"], keys, algorithms=["ES256"]).claims
    assert claims["iss"] == discovery["issuer"]
    assert (claims["aud"], claims["nonce"]) == (OIDC_CLIENT_ID, "the-nonce")
    assert (claims["name"], claims["roles"]) == ("Omar", ["operator"])
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    async with sandbox.session.get("/oidc/userinfo", headers=bearer) as response:
        assert (await response.json())["sub"] == claims["sub"]


async def test_a_code_works_once(sandbox: Sandbox) -> None:
    granted = await code(sandbox)
    assert (await redeem(sandbox, granted))[0] == 200
    assert await redeem(sandbox, granted) == (400, {"error": "invalid_grant"})


@pytest.mark.parametrize(
    "changes",
    [
        {"code_verifier": "w" * 43},
        {"code_verifier": ""},
        {"redirect_uri": "http://127.0.0.1:8081/other"},
        {"code": "unknown"},
    ],
)
async def test_a_code_needs_its_verifier_and_its_redirect_uri(
    sandbox: Sandbox, changes: dict[str, str]
) -> None:
    form = {"code": await code(sandbox)} | changes
    given = form.pop("code")
    assert (await redeem(sandbox, given, BASIC, **form)) == (400, {"error": "invalid_grant"})


async def test_a_code_expires(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openid, "CODE_LIFETIME", -1.0)
    assert (await redeem(sandbox, await code(sandbox)))[0] == 400


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": aiohttp.encode_basic_auth(OIDC_CLIENT_ID, "wrong")},
        {"Authorization": aiohttp.encode_basic_auth("other", SECRET)},
        {"Authorization": "Basic !"},
    ],
)
async def test_the_application_must_know_its_secret(
    sandbox: Sandbox, headers: dict[str, str]
) -> None:
    assert await redeem(sandbox, await code(sandbox), headers) == (401, {"error": "invalid_client"})


async def test_the_secret_may_be_in_the_form(sandbox: Sandbox) -> None:
    form = {"client_id": OIDC_CLIENT_ID, "client_secret": SECRET}
    assert (await redeem(sandbox, await code(sandbox), {}, **form))[0] == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"client_id": "other"},
        {"redirect_uri": "https://evil.example/"},
        {"redirect_uri": "http://127.0.0.1.evil.example/"},
        {"redirect_uri": "javascript:alert(1)"},
        {"redirect_uri": None},
    ],
)
async def test_it_redirects_only_to_this_machine(
    sandbox: Sandbox, changes: dict[str, str | None]
) -> None:
    assert await authorize(sandbox, **changes) == (400, URL())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"scope": "profile"}, "invalid_scope"),
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"as": "nobody"}, "access_denied"),
    ],
)
async def test_a_wrong_request_is_reported_to_the_application(
    sandbox: Sandbox, changes: dict[str, str | None], error: str
) -> None:
    status, location = await authorize(sandbox, **changes)
    assert (status, location.query["error"]) == (302, error)
    assert "code" not in location.query


async def test_without_a_choice_a_page_offers_everybody(sandbox: Sandbox) -> None:
    query = REQUEST | {"state": "<script>alert(1)</script>'\""}
    del query["as"]
    async with sandbox.session.get("/oidc/authorize", params=query) as response:
        text = await response.text()
    for name in ("Vera", "Omar", "Ada"):
        assert f"Sign in as {name}" in text
    assert "<script>alert" not in text


async def test_a_public_url_is_the_issuer_and_the_address_of_the_request_is_for_programs() -> None:
    async with running_sandbox(url="http://127.0.0.1:18090") as sandbox:
        discovery = await sandbox.get("/oidc/.well-known/openid-configuration")
    assert discovery["issuer"] == "http://127.0.0.1:18090/oidc"
    assert discovery["authorization_endpoint"] == "http://127.0.0.1:18090/oidc/authorize"
    assert discovery["token_endpoint"] == f"{sandbox.url.origin()}/oidc/token"


async def test_unknown_faults_and_fields_are_rejected(sandbox: Sandbox) -> None:
    for body in ({"fault": "everything"}, {"default": "key"}):
        async with sandbox.session.put("/api/oidc", json=body) as response:
            assert response.status == 422
    async with sandbox.session.get("/oidc/userinfo") as response:
        assert response.status == 401


async def test_buttons_set_the_fault(sandbox: Sandbox) -> None:
    for name, fault in (("expired", "expired"), ("none", None)):
        async with sandbox.session.post(f"/oidc/fault/{name}") as response:
            assert response.status == 200  # the page, after a redirect
            assert f"Fault of the next sign-ins: {name}" in await response.text()
        assert await sandbox.get("/api/oidc") == {"fault": fault}
    async with sandbox.session.post("/oidc/fault/other") as response:
        assert response.status == 404
