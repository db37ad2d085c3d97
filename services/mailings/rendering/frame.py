"""The HTML frame around the content of e-mails."""

from dataclasses import dataclass
from typing import Final

from css_inline import CSSInliner
from jinja2 import StrictUndefined, TemplateSyntaxError
from jinja2.environment import Template
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

_ENVIRONMENT: Final = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_VARIABLES: Final = frozenset(
    ("subject", "opening", "product", "content", "unsubscribe", "language", "postal_address")
)
# Many mail clients ignore <style>. Rules that no attribute can express, such as media queries, stay
# there. Links to style sheets are not loaded.
_INLINER: Final = CSSInliner(
    keep_style_tags=True,
    remove_inlined_selectors=True,
    minify_css=True,
    keep_link_tags=True,
    load_remote_stylesheets=False,
)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A frame, with the language of templates that name none and the sender's postal address."""

    template: Template
    language: str
    postal_address: tuple[str, ...]  # lines

    def render(  # noqa: PLR0913 - the variables of a frame
        self,
        content: str,
        *,
        subject: str,
        opening: str,
        product: str,
        unsubscribe: str,
        language: str | None,
    ) -> str:
        """Return the HTML of an e-mail, with its styles as attributes of the elements.

        `content` is HTML, all others are texts.
        """
        html = self.template.render(
            content=Markup(content),  # noqa: S704 - the cleaned output of Markdown
            subject=subject,
            opening=opening,
            product=product,
            unsubscribe=unsubscribe,
            language=language or self.language,
            postal_address=self.postal_address,
        )
        return _INLINER.inline(html)


def parse_frame(source: str, *, language: str, postal_address: str) -> Frame:
    """Compile a frame, and render it once without values.

    Raises:
        TemplateSyntaxError: the frame is not valid.
    """
    tree = _ENVIRONMENT.parse(source)
    names = find_undeclared_variables(tree) - set(_ENVIRONMENT.globals)
    for name in sorted(names - _VARIABLES):
        available = ", ".join(sorted(_VARIABLES))
        raise TemplateSyntaxError(f"unknown variable {name}; available: {available}", 1)
    if "content" not in names:
        raise TemplateSyntaxError("does not contain {{ content }}", 1)
    lines = tuple(line.strip() for line in postal_address.splitlines() if line.strip())
    frame = Frame(_ENVIRONMENT.from_string(tree), language, lines)
    try:
        frame.render("", subject="", opening="", product="", unsubscribe="", language=None)
    except Exception as error:  # noqa: BLE001 - a frame can raise any error
        raise TemplateSyntaxError(f"cannot be rendered: {type(error).__name__}", 1) from None
    return frame
