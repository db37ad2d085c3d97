"""Rendering: one template, one way, one posting's context; then user by user."""

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from jinja2 import Environment, TemplateRuntimeError, Undefined
from jinja2.environment import Template as Jinja
from jinja2.runtime import Context

from services.mailings.rendering.compiler import (
    GIVEN,
    UNSUBSCRIBE,
    Expression,
    TemplateError,
    as_text,
)
from services.mailings.rendering.loader import SHIPPED, InvalidTemplateError, Template
from services.mailings.rendering.markdown import URL_BEGINS, URL_ENDS, document
from services.mailings.rendering.placeholder import (
    Filled,
    clean,
    in_html,
    in_line,
    in_text,
    mark_of_slot,
    mark_of_value,
)
from shared.templating.sandbox import TooLargeError
from shared.templating.time_limit import TimeLimit, TimeLimitExceededError

# Seconds of this process's time for one message: a hundred times what a large one takes.
LONGEST: Final = 0.5
# Characters of the text and of the HTML: mail programs clip what is larger than a tenth of that.
LARGEST_EMAIL: Final = 262_144
# As many as ten parts of an SMS can hold; the contract SendSms says the same.
LARGEST_SMS: Final = 1_600
LONGEST_SUBJECT: Final = 998
"""RFC 5322: a line is no longer."""
# A shape of a large message takes 100 kB, so that all of an edition take a few megabytes.
SHAPES: Final = 64

_FRAME: Final = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    SHIPPED.joinpath("frame.html").read_text()
)
_TOO_LARGE: Final = f"the message is larger than {LARGEST_EMAIL} characters"
_NOTHING: Final = Filled(())
_TELLING: Final = (
    *(TemplateError, TimeLimitExceededError, TooLargeError, TemplateRuntimeError),
    *(TypeError, ArithmeticError),
)
_TIME: Final = TimeLimit(LONGEST)
_BREAKS: Final = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
_SPACES: Final = re.compile(r"[^\S\n]+")
_LINES: Final = re.compile(r" ?\n\s*")


class RenderingError(Exception):
    """This user's message can't be rendered; the text says why, without any value."""


class Rendered(NamedTuple):
    """What one user gets. An SMS has no subject and no HTML."""

    subject: str
    text: str
    html: str | None


class _DependsOnRecipientError(Exception):
    """A trial without a user has come to where it needs one."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """A message but for the values of slots; those that occur in it are `used`."""

    subject: Filled
    text: Filled
    html: Filled | None
    used: Sequence[int]


@dataclass
class _Run:
    """The template run once; values and slots that were put out are remembered."""

    probed: Sequence[Any]
    known: list[str] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    size: int = 0

    def slot(self, number: int) -> str:
        self.used.add(number)
        return mark_of_slot(number)

    def value(self, value: Any, what: str) -> str:
        text = clean(as_text(value, what))
        self.size += len(text)
        self.known.append(text)
        return mark_of_value(len(self.known) - 1)

    def probe(self, number: int) -> Any:
        probed = self.probed[number]
        if isinstance(probed, Exception):
            raise probed
        return probed

    def text(self, template: Jinja, variables: Mapping[str, Any]) -> str:
        asked = {"_slot": self.slot, "_value": self.value, "_probe": self.probe}
        pieces = []
        for piece in template.root_render_func(
            template.new_context({**variables, **asked}, shared=True)
        ):
            pieces.append(piece)
            self.size += len(piece)
            if self.size > LARGEST_EMAIL:
                raise TemplateError(_TOO_LARGE)
        return "".join(pieces)


class BoundTemplate:
    """A template with one posting's context, to be rendered for many users.

    What does not depend on the user is worked out once; docs/templates.md says how that makes a
    message cost a few microseconds. In the main thread only, see TimeLimit.

    Raises:
        InvalidTemplateError: a variable is missing, or the template fails whoever the user is.
    """

    def __init__(
        self, template: Template, channel: str, context: Mapping[str, Any], product: str
    ) -> None:
        self._name = template.name
        self._program = template.program
        self._way = channel
        self._as_written = channel == "sms" and not template.markdown
        self._variables = self._program.variables({**context, "product": product})
        self._shapes: OrderedDict[Any, _Shape] = OrderedDict()
        for name in sorted(GIVEN & context.keys()):
            raise InvalidTemplateError(template.name, f"{name} can't be given in the context")
        for name, line in self._program.required.items():
            if name not in context:
                raise InvalidTemplateError(template.name, f"{name} is missing in the context", line)
        self._try()

    def render(self, user: Mapping[str, Any], *, unsubscribe_url: str | None) -> Rendered:
        """The message for a user.

        Raises:
            RenderingError: there is none for this one.
        """
        try:
            with _TIME:
                return self._rendered(user, unsubscribe_url)
        except Exception as error:  # noqa: BLE001 - whatever a template raises is its own fault
            raise RenderingError(str(self._wrong(error))) from None

    def _rendered(self, user: Mapping[str, Any], unsubscribe_url: str | None) -> Rendered:
        variables = {**self._variables, "user": user, "unsubscribe_url": unsubscribe_url}
        context = self._program.context(variables)
        shape = self._shape(context, linked=unsubscribe_url is not None)
        slots = [""] * len(self._program.slots)
        for number in shape.used:
            slots[number] = clean(self._program.slots[number].text(context))
        text = shape.text.of(slots)
        if shape.html is None:
            return Rendered("", _sms(text), None)
        subject, html = _one_line(shape.subject.of(slots)), shape.html.of(slots)
        if not subject:
            raise TemplateError("the subject is empty")
        if max(len(text), len(html)) > LARGEST_EMAIL:
            raise TemplateError(_TOO_LARGE)
        return Rendered(subject, text, html)

    def _shape(self, context: Context, *, linked: bool) -> _Shape:
        """The shape for this user, made if it is not known."""
        probed = [_probed(probe, context) for probe in self._program.probes]
        key = (linked, *map(_frozen, probed))
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = self._made(_Run(probed), linked=linked)
            if len(self._shapes) > SHAPES:
                self._shapes.popitem(last=False)
        elif len(self._shapes) > 1:
            self._shapes.move_to_end(key)
        return shape

    def _made(self, run: _Run, *, linked: bool) -> _Shape:
        body = run.text(self._program.body, self._variables)
        if self._as_written:
            return _Shape(_NOTHING, in_line(body, run.known), None, tuple(run.used))
        read = document(body)
        if self._way == "sms":
            return _Shape(_NOTHING, in_text(read.text, run.known), None, tuple(run.used))
        subject = " ".join(run.text(self._program.subject, self._variables).split())
        text = read.text
        unsubscribe = run.slot(UNSUBSCRIBE) if linked else None
        if unsubscribe:
            text += f"\n\n---\nUnsubscribe{URL_BEGINS}{unsubscribe}{URL_ENDS}"
        html = _FRAME.render(
            subject=subject,
            opening=read.opening,
            product=self._variables["product"],
            content=read.html.strip(),
            unsubscribe=unsubscribe,
        )
        return _Shape(
            in_line(subject, run.known),
            in_text(text + "\n", run.known),
            in_html(html, run.known),
            tuple(run.used),
        )

    def _try(self) -> None:
        """Run it without a user, with every condition on users false, then true.

        What depends on a user's values can't be tried. What fails all the same fails for whom the
        condition holds, and is the template's or the context's fault.
        """
        texts = [self._program.body] if self._way == "sms" else self._program.texts
        for truth in (False, True):
            probed = [
                truth if each.truth else _DependsOnRecipientError() for each in self._program.probes
            ]
            for text in texts:
                try:
                    with _TIME:
                        _Run(probed).text(text, self._variables)
                except _DependsOnRecipientError:
                    continue
                except Exception as error:  # noqa: BLE001 - as above
                    raise self._wrong(error) from None
            if not any(each.truth for each in self._program.probes):
                break

    def _wrong(self, error: Exception) -> InvalidTemplateError:
        line = error.line if isinstance(error, TemplateError) else None
        line = line or self._program.line_of(error)
        if isinstance(error, RecursionError):
            return InvalidTemplateError(self._name, "is nested too deeply", line)
        # Those that tell no value; Python's others may.
        if isinstance(error, _TELLING):
            return InvalidTemplateError(self._name, str(error), line)
        return InvalidTemplateError(self._name, type(error).__name__, line)


def _probed(probe: Expression, context: Context) -> Any:
    """Its value, or the error, which is raised where the template asks for it."""
    try:
        return probe.of(context)
    except TimeLimitExceededError:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        return error


def _frozen(value: Any) -> tuple[type, str]:
    """What tells values apart that a template can tell apart: 1, 1.0, true and "1"."""
    if isinstance(value, Undefined):
        return Undefined, str(value._undefined_message)  # noqa: SLF001 - Jinja's own word for it
    return type(value), repr(value)


def _one_line(text: str) -> str:
    line = text if text.isprintable() and "  " not in text else _BREAKS.sub(" ", text)
    return line.strip()[:LONGEST_SUBJECT]


def _sms(text: str) -> str:
    written = _LINES.sub("\n", _SPACES.sub(" ", text)).strip()
    if not written:
        raise TemplateError("the text is empty")
    if len(written) > LARGEST_SMS:
        raise TemplateError(f"the text is longer than the {LARGEST_SMS} characters of an SMS")
    return written
