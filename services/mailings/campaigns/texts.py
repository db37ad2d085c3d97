"""The texts of mailings: checks them, and composes test messages."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from services.mailings.messages import ReadyMessage
from services.mailings.rendering.bound_template import BoundTemplate, RenderingError
from services.mailings.rendering.formats import FORMATS, Rendered
from services.mailings.rendering.loader import InvalidTemplateError, TemplateLoader, parse_text
from shared.contracts.mailings import MailingContent
from shared.contracts.requests import FieldError
from shared.registry import CHANNELS, URGENT


class InvalidTextError(Exception):
    """The text of a mailing cannot be rendered."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field_error = FieldError(field=field, message=reason)


class Texts:
    """Compiles the texts of mailings in the sandbox of templates."""

    def __init__(self, templates: TemplateLoader, product: str) -> None:
        self._templates = templates
        self._product = product

    def check(self, content: MailingContent) -> None:
        """Check that the text of a mailing can be rendered.

        Raises:
            InvalidTextError: it cannot be rendered for any client.
        """
        self._bound(content)

    def preview(self, content: MailingContent, user: Mapping[str, Any]) -> str:
        """Return the text of a mailing for a user.

        Raises:
            InvalidTextError: the text cannot be rendered for this user.
        """
        return self._rendered(content, user).text

    def test_message(
        self, content: MailingContent, id_: UUID, user: Mapping[str, Any]
    ) -> ReadyMessage:
        """Return an urgent message to a user that belongs to no mailing, so it is not counted.

        Raises:
            InvalidTextError: the text cannot be rendered for this user.
        """
        channel = CHANNELS[content.channel]
        rendered = self._rendered(content, user)
        fields: dict[str, Any] = {
            "id": str(id_),
            channel.address: user[channel.user_address],
            **FORMATS[content.channel].fields(rendered, None),
        }
        body = channel.contract(**fields).model_dump_json(exclude_none=True).encode()
        return ReadyMessage(id_, channel.type, channel.queues[URGENT], body)

    def _rendered(self, content: MailingContent, user: Mapping[str, Any]) -> Rendered:
        try:
            return self._bound(content).render(user, unsubscribe_url=None)
        except RenderingError as error:
            raise InvalidTextError(_field(content), str(error)) from None

    def _bound(self, content: MailingContent) -> BoundTemplate:
        try:
            template = (
                parse_text(content.text)
                if content.text is not None
                else self._templates.get(content.template or "", content.channel)
            )
            if template.fetch:
                raise InvalidTextError("template", "fetches data, which mailings do not support")
            return BoundTemplate(template, content.channel, content.template_context, self._product)
        except InvalidTemplateError as error:
            raise InvalidTextError(_field(content), str(error)) from None


def _field(content: MailingContent) -> str:
    return "template" if content.text is None else "text"
