"""The settings of the console."""

from ipaddress import ip_address
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, SecretStr, StringConstraints
from yarl import URL

from shared.http.client_address import HeaderName
from shared.settings import EMPTY_IS_NONE, TableSettings

RoleName = Literal["viewer", "operator", "admin"]
Text = Annotated[str, StringConstraints(min_length=1, max_length=255)]


def is_loopback(host: str | None) -> bool:
    """Return whether browsers treat this host as this machine, so that http is safe."""
    if host is None:
        return False
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _url(value: str) -> str:
    url = URL(value)
    if url.scheme not in ("http", "https") or not url.host or url.query_string or url.fragment:
        raise ValueError("must look like https://host/path")
    return value


def _safe_url(value: str) -> str:
    url = URL(_url(value))
    if url.scheme == "http" and not is_loopback(url.host):
        raise ValueError("must use https, except for 127.0.0.1 and localhost")
    return value


def _origin(value: str) -> str:
    url = URL(_safe_url(value))
    if url.path != "/":
        raise ValueError("must not have a path: the console needs a host of its own")
    return str(url.origin())


_ISSUER_EXAMPLE: Final = "https://id.example.com/realms/company"


class ConsoleSettings(TableSettings, env_prefix="RINGBACK_CONSOLE_"):
    """The table `[console]` of ringback.toml."""

    host: str = Field(default="127.0.0.1", description="Address of the console's pages.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=8081, description="Port of the console's pages; 0 chooses a free one."
    )
    url: Annotated[Annotated[str, AfterValidator(_origin)] | None, EMPTY_IS_NONE] = Field(
        default=None,
        description="URL at which browsers open the console. The provider redirects to it. Default:"
        " http://127.0.0.1 with the port.",
        examples=["https://ringback.example.com"],
    )
    address_header: HeaderName | None = Field(
        default=None,
        description="Header in which a proxy reports the address of the browser, for the limit of"
        " sign-ins. Its last entry is used. Default: the address of the connection.",
        examples=["X-Forwarded-For"],
    )
    request_timeout: Annotated[float, Field(gt=0, le=300)] = Field(
        default=10.0, description="Timeout of a request to another service, in seconds."
    )
    session_idle: Annotated[float, Field(ge=60, le=86_400)] = Field(
        default=3600.0,
        description="Time without a request after which a user must sign in again, in seconds.",
    )
    session_lifetime: Annotated[float, Field(ge=60, le=604_800)] = Field(
        default=43_200.0,
        description="Time after which a user must sign in again in any case, in seconds. A changed"
        " role takes effect then.",
    )
    oidc_issuer: Annotated[Annotated[str, AfterValidator(_safe_url)] | None, EMPTY_IS_NONE] = Field(
        default=None,
        validation_alias="RINGBACK_OIDC_ISSUER",
        description="Issuer of the OpenID provider at which users sign in. The console does not"
        " start without it.",
        examples=[_ISSUER_EXAMPLE],
    )
    oidc_discovery_url: Annotated[Annotated[str, AfterValidator(_url)] | None, EMPTY_IS_NONE] = (
        Field(
            default=None,
            validation_alias="RINGBACK_OIDC_DISCOVERY_URL",
            description="URL of the provider's discovery document, if the console reaches the"
            " provider at another address than browsers. Default: the issuer with"
            " /.well-known/openid-configuration.",
            examples=["http://keycloak:8080/realms/company/.well-known/openid-configuration"],
        )
    )
    oidc_client_id: Text = Field(
        default="ringback",
        validation_alias="RINGBACK_OIDC_CLIENT_ID",
        description="Client id of the console at the provider.",
    )
    oidc_client_secret: Annotated[SecretStr | None, EMPTY_IS_NONE] = Field(
        default=None,
        validation_alias="RINGBACK_OIDC_CLIENT_SECRET",
        description="Client secret of the console. Default: none, for a public client.",
        examples=["the-secret-from-the-provider"],
    )
    oidc_role_claim: Text = Field(
        default="roles",
        validation_alias="RINGBACK_OIDC_ROLE_CLAIM",
        description="Claim with the roles of a user, a text or a list. Dots lead into objects:"
        " realm_access.roles.",
    )
    oidc_roles: dict[Text, RoleName] = Field(
        default={},
        validation_alias="RINGBACK_OIDC_ROLES",
        description="Role for each value of that claim, as JSON. Default: the values are viewer,"
        " operator and admin.",
        examples=[{"operations": "operator", "platform": "admin"}],
    )
