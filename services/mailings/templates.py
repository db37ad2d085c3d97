"""The templates of messages: Markdown with Jinja, and a front matter that says what they need."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from shared.contracts.messages import Way

SHIPPED: Final = Path(__file__).with_name("templates")


class WrongTemplate(Exception):  # noqa: N818 - what is found
    """A template can't be used; the text says where and why, and holds no value of any context."""


@dataclass(frozen=True)
class Template:
    """A template as it stands in its file."""

    name: str
    kind: str
    fetch: tuple[str, ...]
    subject: str
    body: str


class Library:
    """The shipped templates, and those of a folder, which come first."""

    def __init__(self, folder: Path | None) -> None:
        self._folders = (folder, SHIPPED) if folder else (SHIPPED,)

    def get(self, name: str, way: Way) -> Template:
        """The template of this name, or its twin for this way.

        Raises:
            WrongTemplate: there is none, or it can't be used.
        """
        twin = name.replace("sms/" if way == "email" else "email/", f"{way}/", 1)
        for path in (folder / each for each in (twin, name) for folder in self._folders):
            if path.is_file():
                front: Mapping[str, Any] = {}
                body = path.read_text()
                if body.startswith("---\n"):
                    head, _, body = body[4:].partition("\n---\n")
                    front = yaml.safe_load(head) or {}
                return Template(
                    name,
                    front.get("kind", path.stem),
                    tuple(front.get("fetch", ())),
                    front.get("subject", ""),
                    body,
                )
        raise WrongTemplate(f"there is no template {name}")
