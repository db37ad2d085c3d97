"""Rendering: one template, one way, one posting's context; then user by user."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markdown_it import MarkdownIt

from services.mailings.templates import Template, WrongTemplate
from shared.contracts.messages import Way


class Unrenderable(Exception):  # noqa: N818 - what happened
    """This user's message can't be rendered; the text says why, without any value."""


class Rendered(NamedTuple):
    """What one user gets. An SMS has no subject and no HTML."""

    subject: str
    text: str
    html: str | None


class Edition:
    """A template with one posting's context, to be rendered for many users."""

    def __init__(
        self, template: Template, way: Way, context: Mapping[str, Any], product: str
    ) -> None:
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
        self._way = way
        self._context = {**context, "product": product}
        try:
            self._subject = environment.from_string(template.subject)
            self._body = environment.from_string(template.body)
        except TemplateError as error:
            raise WrongTemplate(f"{template.name}: {error.message}") from None

    def render(self, user: Mapping[str, Any], *, unsubscribe_url: str | None) -> Rendered:
        """Render it for a user.

        Raises:
            Unrenderable: not for this one.
        """
        context = {**self._context, "user": user, "unsubscribe_url": unsubscribe_url}
        try:
            text = self._body.render(context)
            if self._way == "sms":
                return Rendered("", " ".join(text.split()), None)
            html = MarkdownIt("commonmark", {"html": False}).render(text)
            return Rendered(self._subject.render(context), text, html)
        except TemplateError as error:
            raise Unrenderable(str(error)) from None
