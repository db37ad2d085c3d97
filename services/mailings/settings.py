"""What can be set about mailings."""

from pydantic_settings import BaseSettings, SettingsConfigDict


class MailingsSettings(BaseSettings):
    """The table `[mailings]` of ringback.toml, and `RINGBACK_MAILINGS_…`."""

    model_config = SettingsConfigDict(
        env_prefix="RINGBACK_MAILINGS_", extra="forbid", hide_input_in_errors=True, frozen=True
    )
