"""What can be set about the sandbox."""

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from yarl import URL


def _http_url(value: str) -> str:
    url = URL(value)
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("must look like http://host:8090")
    return value


class Settings(BaseSettings):
    """Environment variables ``RINGBACK_SANDBOX_…``, or the table [sandbox]."""

    model_config = SettingsConfigDict(
        env_prefix="RINGBACK_SANDBOX_", frozen=True, hide_input_in_errors=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8090, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    smtp_port: int = Field(
        8025, ge=0, le=65535, description="Port to take mail on; 0 takes a free one."
    )
    url: Annotated[str, AfterValidator(_http_url)] | None = Field(
        None,
        description="Where others reach it: events link to this. Not set: where it was asked.",
        examples=["http://sandbox:8090"],
    )
    max_body: int = Field(
        1024 * 1024,
        gt=0,
        description="Largest request body in bytes; a larger one is answered 413. Mails, too: 552.",
    )
    users: int = Field(
        2000, ge=1, le=10_000_000, description="Users in the directory of its `auth`."
    )
    sms_key: SecretStr = Field(
        SecretStr("the-key-of-the-sandbox-sms-gateway"),
        min_length=1,
        description="The SMS gateway takes messages with JWTs signed with it (HS256).",
    )
