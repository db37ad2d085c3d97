"""The templates of messages: Markdown with Jinja, and a front matter that says what they need.

docs/templates.md explains how they are written.
"""

import os
import re
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

import yaml
from jinja2 import TemplateSyntaxError
from pydantic import TypeAdapter, ValidationError

from services.mailings.rendering.compiler import CompiledTemplate, compiled
from shared.contracts.postings import Template as TemplateName
from shared.registry import CHANNELS

SHIPPED: Final = Path(__file__).parents[1] / "templates"
# Bytes of a template's file.
LARGEST: Final = 262_144

_KIND: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_KEYS: Final = ("subject", "kind", "fetch")
_NAME: Final = TypeAdapter[str](TemplateName)


class InvalidTemplateError(Exception):
    """A template can't be used; the text says where and why, and holds no value of any context."""

    def __init__(self, name: str, reason: str, line: int | None = None) -> None:
        super().__init__(f"{name} line {line}: {reason}" if line else f"{name}: {reason}")


@dataclass(frozen=True, slots=True)
class Template:
    """A template, read and compiled."""

    name: str
    kind: str  # of notification; users switch kinds on and off
    fetch: tuple[str, ...]  # variables whose values are URLs of data
    has_subject: bool
    program: CompiledTemplate
    own: bool = True  # of RINGBACK_TEMPLATES_DIR, none of the shipped ones

    @property
    def markdown(self) -> bool:
        """Whether its text is Markdown; that of a template below sms/ stands as it is."""
        return not self.name.startswith("sms/")


class TemplateLoader:
    """The shipped templates, and those of a folder, which come first."""

    def __init__(self, folder: Path | None) -> None:
        self._folders = (folder, SHIPPED) if folder else (SHIPPED,)
        # By file, with the time and size that it had.
        self._read: dict[Path, tuple[tuple[int, int], Template]] = {}

    def names(self) -> list[str]:
        """The names of all templates."""
        files = chain.from_iterable(
            ((folder, file) for file in folder.rglob("*.md")) for folder in self._folders
        )
        return sorted({file.relative_to(folder).as_posix() for folder, file in files})

    def channels(self, name: str) -> list[str]:
        """The ways in which a template, or its twin, can be sent."""
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
            InvalidTemplateError: the template is missing, unreadable or invalid, or is an e-mail
                without a subject.
        """
        try:
            _NAME.validate_python(name)
        except ValidationError:
            raise InvalidTemplateError(name[:255], "is no name such as email/welcome.md") from None
        folder, _, rest = name.partition("/")
        template = self._find(f"{channel}/{rest}") if folder in CHANNELS else None
        template = template or self._find(name)
        if template is None:
            known = ", ".join(self.names())
            raise InvalidTemplateError(name, f"there is no such template; there are {known}")
        if channel == "email" and not template.has_subject:
            raise InvalidTemplateError(
                template.name, "an e-mail has a subject: give one in the front matter"
            )
        return template

    def _find(self, name: str) -> Template | None:
        for file in (folder / name for folder in self._folders):
            try:
                stat = file.stat()
                state = (stat.st_mtime_ns, stat.st_size)
                known = self._read.get(file)
                if known is None or known[0] != state:
                    template = read(name, _content(name, file))
                    template = replace(template, own=not file.is_relative_to(SHIPPED))
                    known = self._read[file] = (state, template)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                why = os.strerror(error.errno or 0)
                raise InvalidTemplateError(name, f"can't be read: {why}") from None
            return known[1]
        return None


def channel_of(name: str) -> str:
    """Return the channel that a template's folder names, or else the first channel."""
    folder = name.partition("/")[0]
    return folder if folder in CHANNELS else next(iter(CHANNELS))


def read(name: str, content: str) -> Template:
    """The template of this name that has this content.

    Raises:
        InvalidTemplateError: it is wrong; says in which line and why.
    """
    front, end = _front_matter(name, content)
    lines = content.split("\n")
    subject, line = front.pop("subject", ("", 0))
    if not isinstance(subject, str):
        raise InvalidTemplateError(name, "subject must be a text", line)
    kind, kind_line = front.pop("kind", (Path(name).stem, 0))
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise InvalidTemplateError(name, "kind must be a word such as new_movies", kind_line)
    try:
        # Behind as many lines as there are before it, so that errors tell the right one.
        program = compiled("\n" * (line - 1) + subject, "\n" * end + "\n".join(lines[end:]))
    except TemplateSyntaxError as error:
        raise InvalidTemplateError(name, error.message or "is no template", error.lineno) from None
    except RecursionError:
        raise InvalidTemplateError(name, "is nested too deeply") from None
    fetch, fetch_line = front.pop("fetch", ([], 0))
    used = program.required.keys() | program.optional
    if not isinstance(fetch, list) or not all(isinstance(each, str) for each in fetch):
        raise InvalidTemplateError(name, "fetch must be a list of variables: [movies]", fetch_line)
    for each in fetch:
        if each not in used:
            raise InvalidTemplateError(
                name, f"fetch names {each!r}, which the template doesn't use", fetch_line
            )
    return Template(name, kind, tuple(fetch), bool(subject), program)


def _content(name: str, file: Path) -> str:
    with file.open("rb") as opened:
        raw = opened.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise InvalidTemplateError(name, f"is larger than {LARGEST} bytes")
    try:
        content = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InvalidTemplateError(name, "is not in UTF-8", line) from None
    found = _CONTROL.search(content)
    if found:
        raise InvalidTemplateError(
            name, "holds a control character", content.count("\n", 0, found.start()) + 1
        )
    return content


def _front_matter(name: str, content: str) -> tuple[dict[str, tuple[Any, int]], int]:
    """Its values with their lines, and the number of its lines."""
    if not content.startswith("---\n"):
        return {}, 0
    lines = content.split("\n")
    try:
        end = lines.index("---", 1)
    except ValueError:
        raise InvalidTemplateError(name, "the front matter has no end: a line ---", 1) from None
    loader = yaml.SafeLoader("\n".join(["", *lines[1:end]]))
    front: dict[str, tuple[Any, int]] = {}
    try:
        root = loader.get_single_node()
        if root is None:
            return {}, end + 1
        if not isinstance(root, yaml.MappingNode):
            raise InvalidTemplateError(name, "the front matter must be keys and values", 2)
        for key, value in root.value:
            line = key.start_mark.line + 1
            if key.value not in _KEYS:
                raise InvalidTemplateError(
                    name, f"there is no key {key.value!r}; there are {', '.join(_KEYS)}", line
                )
            if key.value in front:
                raise InvalidTemplateError(name, f"{key.value} is given twice", line)
            front[key.value] = loader.construct_object(value, deep=True), line
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InvalidTemplateError(name, f"is no YAML: {error.problem}", line) from None
    finally:
        loader.dispose()
    return front, end + 1
