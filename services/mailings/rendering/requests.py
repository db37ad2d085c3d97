"""The handlers of requests about templates: the list, and previews."""

from collections.abc import Mapping
from typing import Final

from services.mailings.rendering.bound_template import BoundTemplate, RenderingError
from services.mailings.rendering.formats import FORMATS
from services.mailings.rendering.loader import (
    InvalidTemplateError,
    TemplateLoader,
    channel_of,
)
from services.mailings.rendering.samples import samples
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.contracts.requests import FieldError, invalid
from shared.contracts.template_requests import (
    LIST_TEMPLATES,
    PREVIEW_TEMPLATE,
    ListTemplates,
    PreviewTemplate,
    TemplatePreview,
    Templates,
    TemplateSummary,
)

UNSUBSCRIBE_URL: Final = "https://example.com/unsubscribe"


class TemplateRequests:
    """Handles requests about templates. They contain no data of clients, so every client may."""

    def __init__(self, templates: TemplateLoader, product: str) -> None:
        self._templates = templates
        self._product = product

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict((bound(LIST_TEMPLATES, self._list), bound(PREVIEW_TEMPLATE, self._preview)))

    async def _list(self, context: RequestContext, command: ListTemplates) -> Response:  # noqa: ARG002
        return Templates(items=[self._summary(name) for name in self._templates.names()])

    async def _preview(
        self,
        context: RequestContext,  # noqa: ARG002
        command: PreviewTemplate,
    ) -> Response:
        known = samples()
        variables = known.get(command.name, {}) if command.context is None else command.context
        user = known["user"] if command.user is None else command.user
        url = UNSUBSCRIBE_URL if FORMATS[command.channel].has_html else None
        try:
            template = self._templates.get(command.name, command.channel)
            rendered = BoundTemplate(template, command.channel, variables, self._product).render(
                user, unsubscribe_url=url
            )
        except (InvalidTemplateError, RenderingError) as error:
            return invalid([FieldError(field="name", message=str(error))])
        return TemplatePreview(
            subject=rendered.subject or None,
            text=rendered.text,
            html=rendered.html,
            context=variables,
            user=user,
        )

    def _summary(self, name: str) -> TemplateSummary:
        try:
            found = self._templates.get(name, channel_of(name))
        except InvalidTemplateError as error:
            return TemplateSummary(
                name=name,
                kind="",
                error=str(error),
                channels=[],
                fetch=[],
                required=[],
                optional=[],
            )
        return TemplateSummary(
            name=found.name,
            kind=found.kind,
            channels=self._templates.channels(name),
            fetch=list(found.fetch),
            required=sorted(found.compiled.required),
            optional=sorted(found.compiled.optional),
            error=None,
        )
