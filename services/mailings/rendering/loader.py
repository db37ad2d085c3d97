"""Finds and parses the templates of messages. docs/templates.md explains how to write them."""

import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Final

import yaml
from jinja2 import TemplateSyntaxError
from pydantic import TypeAdapter, ValidationError

from services.mailings.rendering.compiler import MAX_NODES, CompiledTemplate, compile_template
from services.mailings.rendering.formats import FORMATS
from services.mailings.rendering.frame import Frame, parse_frame
from shared.contracts.postings import Template as TemplateName
from shared.registry import CHANNELS

SHIPPED: Final = Path(__file__).parents[1] / "templates"
# Bytes of a template file. Parsing a file of this size takes up to 0.4 s.
MAX_FILE_SIZE: Final = 65_536

_KIND: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_KEYS: Final = ("subject", "kind", "fetch", "required", "language")
# A language of BCP 47, such as `de` or `pt-BR`.
LANGUAGE: Final = r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*"
FRAME: Final = "frame.html"
# The name of a text that is not from a file, in errors. Its folder makes it a plain text.
INLINE: Final = "sms/text"
# Jinja nodes of a text that is not from a file: 60 values with a default. Any caller can send such
# texts, and they compile in 30 ms at most, in which this process does nothing else.
MAX_TEXT_NODES: Final = 400
# Compiled texts in memory. Each slice of a mailing needs its own again.
MAX_TEXTS: Final = 64
_NAME: Final = TypeAdapter[str](TemplateName)


class InvalidTemplateError(Exception):
    """A template is not valid. The text has the file, line and reason, and no context value."""

    def __init__(self, name: str, reason: str, line: int | None = None) -> None:
        super().__init__(f"{name} line {line}: {reason}" if line else f"{name}: {reason}")


_SHIPPED_FRAME: Final = parse_frame(
    SHIPPED.joinpath(FRAME).read_text("utf-8"), language="en", postal_address=""
)


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed and compiled template.

    kind: the kind of notification, which users switch on and off.
    fetch: the variables whose values are URLs of data.
    is_required: whether users cannot switch it off, as with confirmations and codes.
    language: of the text; None for the language of the frame.
    """

    name: str
    kind: str
    fetch: tuple[str, ...]
    has_subject: bool
    compiled: CompiledTemplate
    is_required: bool = False
    is_shipped: bool = False
    language: str | None = None
    frame: Frame = _SHIPPED_FRAME

    @property
    def is_markdown(self) -> bool:
        """Return whether the text is Markdown. Templates in the folder of a text channel aren't."""
        return FORMATS[channel_of(self.name)].has_html


class TemplateLoader:
    """Loads templates from a folder, and the shipped ones that the folder does not replace.

    language: of templates that name none. postal_address: of the sender, in e-mails.
    """

    def __init__(
        self, folder: Path | None, *, language: str = "en", postal_address: str = ""
    ) -> None:
        self._folders = (folder, SHIPPED) if folder else (SHIPPED,)
        self._language = language
        self._postal_address = postal_address
        # By file, with its modification time and size.
        self._cache: dict[Path, tuple[tuple[int, int], Template | Frame]] = {}
        self._with_frame: dict[str, tuple[Template, Template]] = {}

    def names(self) -> list[str]:
        """Return the names of all templates."""
        files = chain.from_iterable(
            ((folder, file) for file in folder.rglob("*.md")) for folder in self._folders
        )
        return sorted({file.relative_to(folder).as_posix() for folder, file in files})

    def channels(self, name: str) -> list[str]:
        """Return the channels for which `get` finds a template."""
        channels: list[str] = []
        for channel in CHANNELS:
            try:
                self.get(name, channel)
            except InvalidTemplateError:
                continue
            channels.append(channel)
        return channels

    def get(self, name: str, channel: str) -> Template:
        """Return the template of this name for a channel.

        A template in the folder of another channel (`email/x.md` for SMS) is replaced by the one of
        the same name in the channel's own folder (`sms/x.md`), if it exists. A changed file is read
        again.

        Raises:
            InvalidTemplateError: the template is missing, unreadable or invalid, or has no subject
                although the channel needs one.
        """
        try:
            _NAME.validate_python(name)
        except ValidationError:
            raise InvalidTemplateError(
                name[:255], "is not a valid name, such as email/welcome.md"
            ) from None
        folder, _, rest = name.partition("/")
        template = self._find(f"{channel}/{rest}") if folder in CHANNELS else None
        template = template or self._find(name)
        if template is None:
            available = ", ".join(self.names())
            raise InvalidTemplateError(name, f"does not exist; available: {available}")
        if FORMATS[channel].has_html and not template.has_subject:
            raise InvalidTemplateError(
                template.name, f"{channel} needs a subject; add one to the front matter"
            )
        return self._framed(template) if FORMATS[channel].has_html else template

    def is_required(self, name: str, channels: Iterable[str]) -> bool:
        """Return whether a template is required on one of these channels."""
        with suppress(InvalidTemplateError):
            return any(self.get(name, channel).is_required for channel in channels)
        return False

    def _find(self, name: str) -> Template | None:
        found = self._read(name, self._parse_template)
        return found if isinstance(found, Template) else None

    def _framed(self, template: Template) -> Template:
        """Return a template with the current frame; the same object if neither has changed."""
        frame = self.frame()
        known, framed = self._with_frame.get(template.name, (None, template))
        if known is not template or framed.frame is not frame:
            framed = replace(template, frame=frame)
            self._with_frame[template.name] = template, framed
        return framed

    def frame(self) -> Frame:
        """Return the frame of e-mails. A changed file is read again."""
        found = self._read(FRAME, self._parse_frame)
        return found if isinstance(found, Frame) else _SHIPPED_FRAME

    def _parse_template(self, name: str, file: Path) -> Template:
        template = parse_template(name, _content(name, file))
        return replace(template, is_shipped=file.is_relative_to(SHIPPED))

    def _parse_frame(self, name: str, file: Path) -> Frame:
        try:
            return parse_frame(
                _content(name, file),
                language=self._language,
                postal_address=self._postal_address,
            )
        except TemplateSyntaxError as error:
            reason = error.message or "is not a valid template"
            raise InvalidTemplateError(name, reason, error.lineno) from None

    def _read(
        self, name: str, parse: Callable[[str, Path], Template | Frame]
    ) -> Template | Frame | None:
        """Return the parsed file of a name. It is parsed again when it has changed."""
        for file in (folder / name for folder in self._folders):
            try:
                stat = file.stat()
                version = (stat.st_mtime_ns, stat.st_size)
                cached = self._cache.get(file)
                if cached is None or cached[0] != version:
                    cached = self._cache[file] = (version, parse(name, file))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                reason = os.strerror(error.errno or 0)
                raise InvalidTemplateError(name, f"cannot be read: {reason}") from None
            return cached[1]
        return None


def channel_of(name: str) -> str:
    """Return the channel that a template's folder names, or else the first channel."""
    folder = name.partition("/")[0]
    return folder if folder in CHANNELS else next(iter(CHANNELS))


def parse_template(name: str, content: str, *, max_nodes: int = MAX_NODES) -> Template:
    """Parse and compile a template.

    Raises:
        InvalidTemplateError: the content is not a valid template.
    """
    front_matter, end = _front_matter(name, content)
    lines = content.split("\n")
    subject, line = front_matter.pop("subject", ("", 0))
    if not isinstance(subject, str):
        raise InvalidTemplateError(name, "subject must be a text", line)
    kind, kind_line = front_matter.pop("kind", (Path(name).stem, 0))
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise InvalidTemplateError(name, "kind must be a word such as new_movies", kind_line)
    # The empty lines in front make Jinja report line numbers of the file.
    body = "\n" * end + "\n".join(lines[end:])
    compiled = _compiled(name, "\n" * (line - 1) + subject, body, max_nodes)
    fetch, fetch_line = front_matter.pop("fetch", ([], 0))
    used = compiled.required.keys() | compiled.optional
    if not isinstance(fetch, list) or not all(isinstance(variable, str) for variable in fetch):
        raise InvalidTemplateError(name, "fetch must be a list of variables: [movies]", fetch_line)
    for variable in fetch:
        if variable not in used:
            raise InvalidTemplateError(
                name, f"fetch names {variable!r}, which the template does not use", fetch_line
            )
    required, required_line = front_matter.pop("required", (False, 0))
    if not isinstance(required, bool):
        raise InvalidTemplateError(name, "required must be true or false", required_line)
    language, language_line = front_matter.pop("language", (None, 0))
    if language is not None and not (
        isinstance(language, str) and re.fullmatch(LANGUAGE, language)
    ):
        raise InvalidTemplateError(name, "language must be a tag such as de", language_line)
    return Template(name, kind, tuple(fetch), bool(subject), compiled, required, language=language)


def _compiled(name: str, subject: str, body: str, max_nodes: int) -> CompiledTemplate:
    try:
        return compile_template(subject, body, max_nodes=max_nodes)
    except TemplateSyntaxError as error:
        reason = error.message or "is not a valid template"
        raise InvalidTemplateError(name, reason, error.lineno) from None
    except (RecursionError, SyntaxError):  # Python compiles at most 20 loops in each other
        raise InvalidTemplateError(name, "is nested too deeply") from None
    except ValueError:  # Python converts at most 4,300 digits
        raise InvalidTemplateError(name, "contains a number that is too long") from None


@lru_cache(maxsize=MAX_TEXTS)
def parse_text(text: str) -> Template:
    """Parse and compile the text of a plain message, without front matter.

    Raises:
        InvalidTemplateError: the text is not valid.
    """
    if text.startswith("---\n"):
        raise InvalidTemplateError(INLINE, "must not begin with a line ---", 1)
    if found := _CONTROL.search(text):
        raise InvalidTemplateError(
            INLINE, "contains a control character", text.count("\n", 0, found.start()) + 1
        )
    return parse_template(INLINE, text, max_nodes=MAX_TEXT_NODES)


def _content(name: str, file: Path) -> str:
    with file.open("rb") as opened:
        raw = opened.read(MAX_FILE_SIZE + 1)
    if len(raw) > MAX_FILE_SIZE:
        raise InvalidTemplateError(name, f"is larger than {MAX_FILE_SIZE} bytes")
    try:
        content = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InvalidTemplateError(name, "is not valid UTF-8", line) from None
    found = _CONTROL.search(content)
    if found:
        raise InvalidTemplateError(
            name, "contains a control character", content.count("\n", 0, found.start()) + 1
        )
    return content


def _front_matter(name: str, content: str) -> tuple[dict[str, tuple[Any, int]], int]:
    """Return the values of the front matter with their lines, and its number of lines."""
    if not content.startswith("---\n"):
        return {}, 0
    lines = content.split("\n")
    try:
        end = lines.index("---", 1)
    except ValueError:
        raise InvalidTemplateError(name, "the front matter does not end with ---", 1) from None
    front_matter: dict[str, tuple[Any, int]] = {}
    line = 1
    try:
        loader = yaml.SafeLoader("\n".join(["", *lines[1:end]]))
        root = loader.get_single_node()
        if root is None:
            return {}, end + 1
        if not isinstance(root, yaml.MappingNode):
            raise InvalidTemplateError(name, "the front matter must contain keys and values", 2)
        for key, value in root.value:
            line = key.start_mark.line + 1
            if key.value not in _KEYS:
                raise InvalidTemplateError(
                    name, f"unknown key {key.value!r}; available: {', '.join(_KEYS)}", line
                )
            if key.value in front_matter:
                raise InvalidTemplateError(name, f"duplicate key {key.value}", line)
            front_matter[key.value] = loader.construct_object(value, deep=True), line
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InvalidTemplateError(name, f"is not valid YAML: {error.problem}", line) from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError):
        # PyYAML's errors for characters and values that are not valid, such as `2026-99-99`.
        raise InvalidTemplateError(name, "the front matter is not valid YAML", line) from None
    return front_matter, end + 1
