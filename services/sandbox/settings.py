"""Settings of the sandbox."""

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from yarl import URL


def _http_url(value: str) -> str:
    url = URL(value)
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("must look like http://host:8090")
    return value


class SandboxSettings(BaseSettings):
    """Environment variables ``RINGBACK_SANDBOX_…``, or the table [sandbox]."""

    model_config = SettingsConfigDict(
        env_prefix="RINGBACK_SANDBOX_", frozen=True, hide_input_in_errors=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8090, ge=0, le=65535, description="Port to listen on; 0 selects a free one.")
    smtp_port: int = Field(
        8025, ge=0, le=65535, description="SMTP port to listen on; 0 selects a free one."
    )
    url: Annotated[str, AfterValidator(_http_url)] | None = Field(
        None,
        description="Public URL, used in links of events. Default: that of the request.",
        examples=["http://sandbox:8090"],
    )
    max_body: int = Field(
        1024 * 1024,
        gt=0,
        description="Largest request body or mail in bytes; a larger one gets 413 or 552.",
    )
    users: int = Field(
        2000, ge=1, le=10_000_000, description="Number of users in the user list of `auth`."
    )
    sms_key: SecretStr = Field(
        SecretStr("the-key-of-the-sandbox-sms-gateway"),
        min_length=1,
        description="Key that the SMS gateway verifies JWTs with (HS256).",
    )
