"""The operations on templates over AMQP, for the console. The gateway offers no routes for them."""

from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.contracts.context import check_context
from shared.contracts.postings import Template, Variable
from shared.contracts.requests import RpcOperation
from shared.contracts.schedules import ENVELOPE
from shared.registry import ChannelName
from shared.topology import MAILINGS_REQUESTS

_RESPONSE: Final = ConfigDict(frozen=True, extra="forbid")


class ListTemplates(BaseModel):
    """Operation: list all templates by name."""

    model_config = ENVELOPE


class PreviewTemplate(BaseModel):
    """Operation: render a template. Nothing is sent."""

    model_config = ENVELOPE

    name: Template
    channel: ChannelName
    context: Annotated[dict[Variable, Any], AfterValidator(check_context)] | None = Field(
        default=None,
        description="The variables; those of `fetch` with the data itself. Default: a sample.",
    )
    user: Annotated[dict[str, Any], AfterValidator(check_context)] | None = Field(
        default=None, description="The recipient. Default: a sample."
    )


class TemplateSummary(BaseModel):
    """A template."""

    model_config = _RESPONSE

    name: str
    kind: str
    channels: list[str] = Field(description="None if the template is not valid.")
    fetch: list[str] = Field(description="Variables whose values in a posting are URLs.")
    required: list[str]
    optional: list[str]
    error: str | None = Field(description="Why the template is not valid.")


class Templates(BaseModel):
    """All templates, those in the folder and the shipped ones."""

    model_config = _RESPONSE

    items: list[TemplateSummary]


class TemplatePreview(BaseModel):
    """A rendered template, and the variables and the recipient that were used."""

    model_config = _RESPONSE

    subject: str | None
    text: str
    html: str | None
    context: dict[str, Any]
    user: dict[str, Any]


LIST_TEMPLATES: Final = RpcOperation(
    MAILINGS_REQUESTS, "ListTemplates", ListTemplates, (Templates,)
)
PREVIEW_TEMPLATE: Final = RpcOperation(
    MAILINGS_REQUESTS, "PreviewTemplate", PreviewTemplate, (TemplatePreview,)
)

TEMPLATE_OPERATIONS: Final = (LIST_TEMPLATES, PREVIEW_TEMPLATE)
