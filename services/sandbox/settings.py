"""What can be set about the sandbox."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Environment variables ``RINGBACK_SANDBOX_HOST``, ``_PORT`` and ``_MAX_BODY``."""

    model_config = SettingsConfigDict(env_prefix="RINGBACK_SANDBOX_", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8090, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    max_body: int = Field(
        1024 * 1024,
        gt=0,
        description="Largest request body in bytes; a larger one is answered 413.",
    )
