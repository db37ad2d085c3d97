"""Renders one template with the context of one posting, for one recipient at a time."""

import re
from collections.abc import Mapping
from typing import Any, Final

from jinja2 import TemplateRuntimeError
from jinja2.environment import Template as JinjaTemplate

from services.mailings.rendering.compiler import (
    RESERVED,
    DependsOnRecipientError,
    OutputError,
    output_text,
    rendering_variables,
    trial_variables,
)
from services.mailings.rendering.formats import FORMATS, Rendered
from services.mailings.rendering.loader import InvalidTemplateError, Template
from services.mailings.rendering.placeholder import clean, placeholder
from services.mailings.rendering.shape import Conversion, ShapeCache
from shared.templating.meter import TooLargeError
from shared.templating.time_limit import TimeLimit, TimeLimitExceededError

# Seconds of CPU time for one message: a hundred times what a large message takes.
RENDERING_TIMEOUT: Final = 0.5
# Characters that a template may write, values included.
MAX_SIZE: Final = 262_144
# Characters of the Markdown of a message, without values: its conversion takes up to 45 MB.
MAX_MARKDOWN_SIZE: Final = 65_536
# The longest line that RFC 5322 allows.
MAX_SUBJECT_SIZE: Final = 998

# Errors whose text contains no value.
_SAFE_ERRORS: Final = (
    *(OutputError, TimeLimitExceededError, TooLargeError, TemplateRuntimeError),
    *(TypeError, ArithmeticError),
)
# Of all templates.
_SHAPES: Final = ShapeCache()
_TIME_LIMIT: Final = TimeLimit(RENDERING_TIMEOUT)
_BREAKS: Final = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
_SPACES: Final = re.compile(r"[^\S\n]+")
_LINES: Final = re.compile(r" ?\n\s*")


class RenderingError(Exception):
    """The message cannot be rendered for this recipient. The text contains no value."""


class _Output:
    """Collects the values of one message, and puts placeholders into its texts.

    size: characters of the texts and of the values.
    """

    def __init__(self) -> None:
        self.values: list[str] = []
        self.size = 0

    def write(self, value: Any, expression: str) -> str:
        """Keep a value and return its placeholder."""
        text = clean(output_text(value, expression))
        self.size += len(text)
        self.values.append(text)
        return placeholder(len(self.values) - 1)

    def render(self, template: JinjaTemplate, variables: dict[str, Any]) -> str:
        """Return the text of a template."""
        pieces = []
        for piece in template.root_render_func(template.new_context(variables, shared=True)):
            pieces.append(piece)
            self.size += len(piece)
            if self.size > MAX_SIZE:
                raise _too_large(MAX_SIZE)
        return "".join(pieces)


class BoundTemplate:
    """A template with the context of one posting, for rendering to many recipients.

    Jinja runs for each recipient and puts placeholders in place of values. Messages with the same
    text and placeholders share a shape, even those of different postings. It is converted from
    Markdown once. Use it only in the main thread, because of TimeLimit.

    Raises:
        InvalidTemplateError: a variable is missing, or the template fails for every recipient.
    """

    def __init__(
        self, template: Template, channel: str, context: Mapping[str, Any], product: str
    ) -> None:
        self._name = template.name
        self._compiled = template.compiled
        self._format = FORMATS[channel]
        self._context = {**context, "product": product}
        self._conversion = Conversion(
            self._format,
            product,
            is_markdown=self._format.has_html or template.is_markdown,
            frame=template.frame,
            language=template.language,
        )
        for name in sorted(RESERVED & context.keys()):
            raise InvalidTemplateError(template.name, f"{name} cannot be set in the context")
        for name, line in self._compiled.required.items():
            if name not in context:
                raise InvalidTemplateError(template.name, f"{name} is missing in the context", line)
        self._run_trials()

    def render(self, recipient: Mapping[str, Any], *, unsubscribe_url: str | None) -> Rendered:
        """Return the message for a recipient.

        Raises:
            RenderingError: the template fails for this recipient.
        """
        try:
            with _TIME_LIMIT:
                return self._render(recipient, unsubscribe_url)
        except Exception as error:  # noqa: BLE001 - a template can raise any error
            raise RenderingError(str(self._invalid(error))) from None

    def _render(self, recipient: Mapping[str, Any], unsubscribe_url: str | None) -> Rendered:
        output = _Output()
        variables = rendering_variables(
            self._context,
            write=output.write,
            recipient=recipient,
            unsubscribe_url=unsubscribe_url,
        )
        body = output.render(self._compiled.body, variables)
        subject = unsubscribe = ""
        if self._format.has_html:
            subject = output.render(self._compiled.subject, variables)
            if unsubscribe_url:
                unsubscribe = output.write(unsubscribe_url, "unsubscribe_url")
        if len(body) > MAX_MARKDOWN_SIZE:
            raise OutputError(f"the Markdown is longer than {MAX_MARKDOWN_SIZE} characters")
        shape = _SHAPES.get((self._conversion, subject, body, unsubscribe), output.size)
        text = shape.text.fill(output.values)
        if shape.html is None:
            return Rendered("", self._checked(_compact(text)), None)
        subject = _one_line(shape.subject.fill(output.values))
        if not subject:
            raise OutputError("the subject is empty")
        html = shape.html.fill(output.values)
        return Rendered(subject, self._checked(text), self._checked(html))

    def _checked(self, text: str) -> str:
        if not text:
            raise OutputError("the text is empty")
        if len(text) > self._format.max_size:
            raise _too_large(self._format.max_size)
        return text

    def _run_trials(self) -> None:
        """Run the template without a recipient, with all their conditions false, then true.

        An error here would occur for every recipient for whom the condition holds, so the template
        or the context is at fault.
        """
        templates = [self._compiled.body]
        if self._format.has_html:
            templates.append(self._compiled.subject)
        for truth in (False, True) if self._compiled.has_conditions else (False,):
            for template in templates:
                output = _Output()
                try:
                    with _TIME_LIMIT:
                        variables = trial_variables(self._context, write=output.write, truth=truth)
                        output.render(template, variables)
                except DependsOnRecipientError:
                    continue
                except Exception as error:  # noqa: BLE001 - a template can raise any error
                    raise self._invalid(error) from None

    def _invalid(self, error: Exception) -> InvalidTemplateError:
        line = self._compiled.line_of(error)
        if isinstance(error, RecursionError):
            return InvalidTemplateError(self._name, "is nested too deeply", line)
        if isinstance(error, _SAFE_ERRORS):
            return InvalidTemplateError(self._name, str(error), line)
        return InvalidTemplateError(self._name, type(error).__name__, line)


def _one_line(text: str) -> str:
    line = text if text.isprintable() and "  " not in text else _BREAKS.sub(" ", text)
    return line.strip()[:MAX_SUBJECT_SIZE]


def _compact(text: str) -> str:
    return _LINES.sub("\n", _SPACES.sub(" ", text)).strip()


def _too_large(limit: int) -> OutputError:
    return OutputError(f"the message is longer than {limit} characters")
