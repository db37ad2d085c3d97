"""The settings of mailings."""

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.settings import EMPTY_IS_NONE


def _unsubscribe_url(value: str) -> str:
    if not value.startswith(("https://", "http://")):
        raise ValueError(
            "must look like https://example.com/unsubscribe?user={user_id}&kind={kind}"
        )
    if set("{}") & set(value.replace("{user_id}", "").replace("{kind}", "")):
        raise ValueError("can contain {user_id} and {kind}, but no other braces")
    return value


class MailingsSettings(BaseSettings):
    """The table `[mailings]` of ringback.toml, and `RINGBACK_MAILINGS_…`."""

    model_config = SettingsConfigDict(
        env_prefix="RINGBACK_MAILINGS_", extra="forbid", hide_input_in_errors=True, frozen=True
    )

    product: Annotated[str, Field(min_length=1, max_length=100)] = Field(
        default="Ringback", description="The name of your product in messages."
    )
    unsubscribe_url: Annotated[
        Annotated[str, AfterValidator(_unsubscribe_url)] | None, EMPTY_IS_NONE
    ] = Field(
        default=None,
        description="URL for one-click unsubscribe from a kind of e-mail. Default: none.",
        examples=["https://example.com/unsubscribe?user={user_id}&kind={kind}"],
    )
    prefetch: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=500, description="Messages in flight from each queue for one worker."
    )
    concurrency: Annotated[int, Field(ge=1, le=64)] = Field(
        default=4, description="Postings that one worker expands at a time."
    )
    max_waiting: Annotated[int, Field(ge=100)] = Field(
        default=20_000,
        description="Messages in a queue and its tiers at which expansion pauses.",
    )
    max_receivers: Annotated[int, Field(ge=1, le=1_000_000_000)] = Field(
        default=2_000_000, description="Users on a list. A posting to a longer list fails."
    )
    retention: Annotated[float, Field(ge=1, le=3650)] = Field(
        default=30.0, description="Days for which an ended posting is kept."
    )
    max_message_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=1_048_576,
        description="Bytes of a message. A larger one is dead-lettered.",
    )
