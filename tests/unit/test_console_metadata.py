"""M11: the discovery document of a provider."""

from typing import Any

import pytest

from services.console.sign_in.errors import Reason, SignInError
from services.console.sign_in.metadata import parse_metadata

ISSUER = "https://id.example.com/realms/company"
DISCOVERY = f"{ISSUER}/.well-known/openid-configuration"
DOCUMENT = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/authorize",
    "token_endpoint": f"{ISSUER}/token",
    "jwks_uri": f"{ISSUER}/keys",
}


def refused(content: Any, issuer: str = ISSUER, discovery_url: str = DISCOVERY) -> str:
    with pytest.raises(SignInError) as caught:
        parse_metadata(content, issuer, discovery_url)
    assert caught.value.reason is Reason.CONFIGURATION
    return str(caught.value)


def test_m11_a_document_with_unknown_members_is_accepted() -> None:
    metadata = parse_metadata(DOCUMENT | {"scopes_supported": ["openid"]}, ISSUER, DISCOVERY)
    assert metadata.token_endpoint == f"{ISSUER}/token"
    assert metadata.end_session_endpoint is None


@pytest.mark.parametrize("content", [None, [], "text", 7, {}, DOCUMENT | {"jwks_uri": None}])
def test_m11_what_is_not_a_discovery_document_is_refused(content: Any) -> None:
    assert "not valid" in refused(content)


@pytest.mark.parametrize("issuer", [f"{ISSUER}/", "https://evil.example", ISSUER.upper()])
def test_m11_the_document_of_another_issuer_is_refused(issuer: str) -> None:
    assert "RINGBACK_OIDC_ISSUER" in refused(DOCUMENT | {"issuer": issuer})


@pytest.mark.parametrize(
    "name",
    [
        *("authorization_endpoint", "end_session_endpoint"),
        *("token_endpoint", "jwks_uri", "userinfo_endpoint"),
    ],
)
@pytest.mark.parametrize(
    "url", ["http://id.example.com/x", "javascript:alert(1)", "/x", "http://["]
)
def test_m11_every_endpoint_must_use_https(name: str, url: str) -> None:
    assert refused(DOCUMENT | {name: url}) == f"{name} does not use https"


def test_m11_the_console_may_use_another_address_than_browsers() -> None:
    """As Keycloak does: endpoints for programs have the host of the request."""
    inside = "http://keycloak:8080/realms/company"
    document = DOCUMENT | {"token_endpoint": f"{inside}/token", "jwks_uri": f"{inside}/keys"}
    assert parse_metadata(document, ISSUER, f"{inside}/.well-known/openid-configuration")
    assert "token_endpoint" in refused(document)
    document |= {"authorization_endpoint": f"{inside}/authorize"}
    assert "authorization_endpoint" in refused(document, ISSUER, inside)


def test_m11_a_provider_on_this_machine_may_use_http() -> None:
    issuer = "http://127.0.0.1:8090/oidc"
    document = {name: value.replace(ISSUER, issuer) for name, value in DOCUMENT.items()}
    assert parse_metadata(document, issuer, f"{issuer}/.well-known/openid-configuration")
