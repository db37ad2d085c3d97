"""What can be set about delivery."""

from pydantic_settings import BaseSettings, SettingsConfigDict


class DeliverySettings(BaseSettings):
    """The table `[delivery]` of ringback.toml, and `RINGBACK_DELIVERY_…`."""

    model_config = SettingsConfigDict(
        env_prefix="RINGBACK_DELIVERY_", extra="forbid", hide_input_in_errors=True, frozen=True
    )
