"""Posting: a command to send a template to every user of a list. Exchange `postings`."""

from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from shared.contracts.callback import Identifier
from shared.contracts.context import check_context
from shared.contracts.durations import Duration, seconds
from shared.http.guard import ForbiddenTargetError, parse_target
from shared.registry import ChannelName, Priority

POSTING: Final = "Posting"


def _url(url: str) -> str:
    try:
        parse_target(url)
    except ForbiddenTargetError as error:
        raise ValueError(str(error)) from None
    return url


def _unique(channels: list[str]) -> list[str]:
    if len(set(channels)) != len(channels):
        raise ValueError("names a channel twice")
    return channels


# A path in the folder of templates, without `..` and hidden files.
Template = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*\.md$"),
    Field(max_length=255),
]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,99}$")]


class Posting(BaseModel):
    """Send `template` to all `receivers` that have enabled such messages."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    from_event: Identifier | None = Field(
        default=None, description="Id of the event that caused it."
    )
    receivers: Annotated[str, AfterValidator(_url)] = Field(
        description="URL of a user list, paged by `page_number` and `page_size`."
    )
    template: Template
    delivery_type: Annotated[list[ChannelName], Field(min_length=1), AfterValidator(_unique)]
    expires_in: Duration | None = Field(
        default=None,
        description="Lifetime, counted from the timestamp of the posting, such as `120 sec`. "
        "Units: sec, min, hour, day. After it nothing is sent.",
    )
    priority: Priority | None = Field(
        default=None,
        description="Urgent messages are sent before bulk ones. Default: `urgent` for a template"
        " marked `required`, otherwise `bulk`.",
    )
    template_context: Annotated[dict[Variable, Any], AfterValidator(check_context)] = Field(
        default_factory=dict,
        description="The variables of the template. Those in `fetch` of its front matter are "
        "URLs of data. All others are literals.",
    )

    @property
    def lifetime(self) -> int | None:
        """Return the seconds after its timestamp in which it may be sent; None for no limit."""
        return None if self.expires_in is None else seconds(self.expires_in)
