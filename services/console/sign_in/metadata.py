"""The discovery document of an OpenID provider (OpenID Connect Discovery, 3). Pure."""

from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError
from yarl import URL

from services.console.sign_in.errors import Reason, SignInError

# The endpoints that browsers open, and those that the console requests.
_FOR_BROWSERS: Final = ("authorization_endpoint", "end_session_endpoint")
_FOR_CONSOLE: Final = ("token_endpoint", "jwks_uri", "userinfo_endpoint")


class Metadata(BaseModel):
    """The members of the document that the console uses."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    end_session_endpoint: str | None = None
    token_endpoint_auth_methods_supported: Sequence[str] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False


def parse_metadata(content: Any, issuer: str, discovery_url: str) -> Metadata:
    """Return the document after checking that it is that of the issuer, and that it uses https.

    Plain http is accepted for browsers if the issuer uses it, and for the console if the discovery
    URL does: then the operator has chosen it.

    Raises:
        SignInError: the document is not valid, or of another issuer.
    """
    try:
        metadata = Metadata.model_validate(content)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, fault["loc"])) for fault in error.errors())
        raise SignInError(
            Reason.CONFIGURATION,
            f"the discovery document is not valid: {fields or 'it is not an object'}",
        ) from None
    if metadata.issuer != issuer:
        raise SignInError(
            Reason.CONFIGURATION,
            "the issuer in the discovery document is not exactly RINGBACK_OIDC_ISSUER",
        )
    for names, chosen in ((_FOR_BROWSERS, issuer), (_FOR_CONSOLE, discovery_url)):
        allowed = {"https", URL(chosen).scheme}
        for name in names:
            endpoint = getattr(metadata, name)
            if endpoint is not None and _scheme(endpoint) not in allowed:
                raise SignInError(Reason.CONFIGURATION, f"{name} does not use https")
    return metadata


def _scheme(url: str) -> str:
    try:
        return URL(url).scheme
    except ValueError:
        return ""
