"""Posting: send a rendered template to many users. Exchange `postings`."""

from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from shared.contracts.callback import Identifier
from shared.contracts.context import check_context
from shared.contracts.durations import Duration, seconds
from shared.http.guard import ForbiddenTargetError, parse_target
from shared.registry import ChannelName

POSTING: Final = "Posting"


def _url(url: str) -> str:
    try:
        parse_target(url)
    except ForbiddenTargetError as error:
        raise ValueError(str(error)) from None
    return url


def _each_once(channels: list[str]) -> list[str]:
    if len(set(channels)) != len(channels):
        raise ValueError("names a way twice")
    return channels


# Below the folder of templates: no way up, nothing hidden.
Template = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*\.md$"),
    Field(max_length=255),
]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,99}$")]


class Posting(BaseModel):
    """Send `template`, rendered for each, to all `receivers` who want such messages."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    from_event: Identifier | None = Field(default=None, description="The event it came from.")
    receivers: Annotated[str, AfterValidator(_url)] = Field(
        description="URL of a list of users, paged by `page_number` and `page_size`."
    )
    template: Template
    delivery_type: Annotated[list[ChannelName], Field(min_length=1), AfterValidator(_each_once)]
    expires_in: Duration | None = Field(
        default=None,
        description="Nothing is sent later than that after the posting's timestamp: `120 sec`; "
        "sec, min, hour or day.",
    )
    template_context: Annotated[dict[Variable, Any], AfterValidator(check_context)] = Field(
        default_factory=dict,
        description="The template's variables: literals, or URLs of data for those that the "
        "template's front matter names under `fetch`.",
    )

    @property
    def lifetime(self) -> int | None:
        """Seconds from its timestamp in which it may be sent; None for ever."""
        return None if self.expires_in is None else seconds(self.expires_in)
