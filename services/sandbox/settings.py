"""The settings of the sandbox."""

from typing import Annotated, Final

from pydantic import AfterValidator, Field, SecretStr
from yarl import URL

from shared.settings import TableSettings

# The path of the OpenID provider, and the only application that it knows.
OIDC_PATH: Final = "/oidc"
OIDC_CLIENT_ID: Final = "ringback-console"


def _http_url(value: str) -> str:
    url = URL(value)
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("must look like http://host:8090")
    return value


class SandboxSettings(TableSettings, env_prefix="RINGBACK_SANDBOX_"):
    """The table `[sandbox]` of ringback.toml."""

    host: str = Field(default="127.0.0.1", description="Address on which HTTP and SMTP listen.")
    port: int = Field(default=8090, ge=0, le=65535, description="HTTP port; 0 chooses a free one.")
    smtp_port: int = Field(
        default=8025, ge=0, le=65535, description="SMTP port; 0 chooses a free one."
    )
    url: Annotated[str, AfterValidator(_http_url)] | None = Field(
        default=None,
        description="URL of the sandbox in the links of its events. Default: the URL of the"
        " request.",
        examples=["http://sandbox:8090"],
    )
    max_body: int = Field(
        default=1024 * 1024,
        gt=0,
        description="Maximum size of a request body (otherwise 413) and of an e-mail (552), in"
        " bytes.",
    )
    users: int = Field(
        default=2000, ge=1, le=10_000_000, description="Number of users in the directory `auth`."
    )
    sms_key: SecretStr = Field(
        default=SecretStr("the-key-of-the-sandbox-sms-gateway"),
        min_length=1,
        description="Key of the JWTs that the SMS gateway accepts (HS256).",
    )
    oidc_secret: SecretStr = Field(
        default=SecretStr("the-secret-of-the-sandbox-console"),
        min_length=1,
        description=f"Secret of the client {OIDC_CLIENT_ID} at the OpenID provider.",
    )
