"""The settings of mailings."""

import re
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BeforeValidator,
    DirectoryPath,
    Field,
    SecretStr,
    ValidationInfo,
)
from pydantic_settings import NoDecode
from yarl import URL

from services.mailings.rendering.loader import LANGUAGE, TemplateLoader
from shared.contracts.mailings import LocalTime
from shared.contracts.messages import EmailAddress
from shared.contracts.schedules import time_zone
from shared.settings import EMPTY_IS_NONE, TableSettings

# A token, or a scheme and a token: visible ASCII, so that it is one header.
_TOKEN: Final = re.compile(r"[!-~]+( [!-~]+)?")


def _split_sources(value: Any) -> Any:
    """Parse a text such as `auth, api:8080, movies=https://…`, as in the environment."""
    if not isinstance(value, str):
        return value
    pairs = (part.strip().partition("=") for part in value.split(",") if part.strip())
    return {host.strip(): url.strip() for host, _, url in pairs}


def _check_sources(value: dict[str, str]) -> dict[str, str]:
    for host, url in value.items():
        if not re.fullmatch(
            r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?", host
        ):
            raise ValueError(f"{host!r} is not a host such as auth or api.example.com:8080")
        if url and not _is_http_url(url):
            raise ValueError(f"{host}: {url!r} is not a URL such as http://10.0.0.7:8000")
    return {host.lower(): url.rstrip("/") for host, url in value.items()}


def _token(value: SecretStr) -> SecretStr:
    if not _TOKEN.fullmatch(value.get_secret_value()):
        raise ValueError("must be a token, or a scheme and a token such as `Token abc`")
    return value


def _source_tokens(value: dict[str, SecretStr], others: ValidationInfo) -> dict[str, SecretStr]:
    tokens = {host.lower(): token for host, token in value.items()}
    # Invalid sources are absent here. They have an error already.
    sources = others.data.get("sources", tokens)
    for host in tokens:
        if host not in sources and sources.get(host.rpartition(":")[0]) != "":
            raise ValueError(f"{host!r} is not in RINGBACK_SOURCES")
    return tokens


def _split_addresses(value: Any) -> Any:
    """Parse addresses that are separated by commas, as in the environment."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def _check_time_zone(value: str) -> str:
    return time_zone(value).key


def _is_http_url(text: str) -> bool:
    try:
        url = URL(text)
    except ValueError:
        return False
    return url.scheme in ("http", "https") and bool(url.host)


def _unsubscribe_url(value: str) -> str:
    if not _is_http_url(value) or set("?#{}") & set(value):
        raise ValueError("must look like https://ringback.example.com/v1/unsubscribe")
    return value


class MailingsSettings(TableSettings, env_prefix="RINGBACK_MAILINGS_"):
    """The table `[mailings]` of ringback.toml."""

    sources: Annotated[
        dict[str, str], NoDecode, BeforeValidator(_split_sources), AfterValidator(_check_sources)
    ] = Field(
        default_factory=dict,
        validation_alias="RINGBACK_SOURCES",
        description="Hosts that user lists and template data may be fetched from, separated by"
        " commas."
        " HOST=URL sets the URL of a host.",
        examples=["auth, movies=http://10.0.0.7:8000"],
    )
    source_tokens: Annotated[
        dict[str, Annotated[SecretStr, AfterValidator(_token)]], AfterValidator(_source_tokens)
    ] = Field(
        default_factory=dict,
        description="Tokens for sources, by host. A request to the host has the header"
        " `Authorization: Bearer TOKEN`, or the value itself if it names another scheme. In the"
        " environment: a JSON object.",
        examples=[{"auth": "a-token", "movies": "Token another-token"}],
    )
    templates_dir: Annotated[DirectoryPath | None, EMPTY_IS_NONE] = Field(
        default=None,
        validation_alias="RINGBACK_TEMPLATES_DIR",
        description="Directory of templates in addition to the shipped ones. They replace shipped"
        " templates of the same name.",
        examples=["/etc/ringback/templates"],
    )
    product: Annotated[str, Field(min_length=1, max_length=100)] = Field(
        default="Ringback", description="Name of your product in messages."
    )
    language: Annotated[str, Field(pattern=f"^{LANGUAGE}$")] = Field(
        default="en", description="Language of templates that do not name one."
    )
    postal_address: Annotated[str, Field(max_length=500)] = Field(
        default="",
        description="Postal address of the sender, at the end of each e-mail. It may have several"
        " lines.",
        examples=["Shop Ltd.\n1 Long Lane\nLondon"],
    )
    report_to: Annotated[list[EmailAddress], NoDecode, BeforeValidator(_split_addresses)] = Field(
        default_factory=list,
        validation_alias="RINGBACK_REPORT_TO",
        description="Recipients of the daily report about mailings, separated by commas.",
        examples=["ann@example.com, bob@example.com"],
    )
    report_at: LocalTime = Field(
        default="08:00",
        validation_alias="RINGBACK_REPORT_AT",
        description="Local time of the daily report, which is about the day before.",
    )
    report_timezone: Annotated[str, AfterValidator(_check_time_zone)] = Field(
        default="UTC",
        validation_alias="RINGBACK_REPORT_TIMEZONE",
        description="IANA time zone of the daily report.",
    )
    unsubscribe_url: Annotated[
        Annotated[str, AfterValidator(_unsubscribe_url)] | None, EMPTY_IS_NONE
    ] = Field(
        default=None,
        description="Public URL of the gateway's /v1/unsubscribe, for the unsubscribe links of"
        " e-mails. Requires RINGBACK_SECRETS_KEY, which signs them.",
        examples=["https://ringback.example.com/v1/unsubscribe"],
    )
    prefetch: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=500,
        description="Maximum number of messages in flight from each queue in one worker.",
    )
    concurrency: Annotated[int, Field(ge=1, le=64)] = Field(
        default=4, description="Number of user lists that one worker expands at a time."
    )
    max_waiting: Annotated[int, Field(ge=100)] = Field(
        default=20_000,
        description="Number of messages in a channel's queue and tiers at which expansion pauses.",
    )
    max_receivers: Annotated[
        Annotated[int, Field(ge=1, le=1_000_000_000)] | None, EMPTY_IS_NONE
    ] = Field(
        default=None,
        description="Maximum number of users on a list. A posting to a longer list fails: before it"
        " sends anything if the first page has `count`. Default: no limit.",
        examples=[100_000],
    )
    retention: Annotated[float, Field(ge=1, le=3650)] = Field(
        default=30.0, description="Retention of ended postings, in days."
    )
    max_message_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=1_048_576,
        description="Maximum size of a message in bytes. Larger ones are dead-lettered.",
    )

    @property
    def credentials(self) -> dict[str, str]:
        """Return the `Authorization` header for each source with a token."""
        tokens = {host: token.get_secret_value() for host, token in self.source_tokens.items()}
        return {
            host: token if " " in token else f"Bearer {token}" for host, token in tokens.items()
        }

    def templates(self) -> TemplateLoader:
        """Return a loader of the templates."""
        return TemplateLoader(
            self.templates_dir, language=self.language, postal_address=self.postal_address
        )
