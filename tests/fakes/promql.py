"""The series that an expression of Prometheus reads, and the labels that it groups by.

It only finds names. Whether an expression is valid is what promtool says.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

_STRING = r'"(?:[^"\\]|\\.)*"'
_MATCHER = re.compile(rf"(\w+)\s*(=~|!~|!=|=)\s*({_STRING})")
_GROUPING = re.compile(
    r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([\w\s,]*)\)", re.IGNORECASE
)
# A series, a function, a keyword, a string, or a number with its unit.
_TOKEN = re.compile(
    rf"(?P<name>[a-zA-Z_:][\w:]*)(?:\s*(?P<call>\()|\s*\{{(?P<matchers>(?:[^\"}}]|{_STRING})*)\}})?"
    rf"|{_STRING}|[\d.][\w.]*"
)
_KEYWORDS = {"and", "or", "unless", "offset", "bool", "by", "without", "on", "ignoring", "inf"}


@dataclass(frozen=True)
class Selector:
    """A metric and its matchers: label, operator and value."""

    name: str
    matchers: tuple[tuple[str, str, str], ...] = ()

    def allows(self, labels: dict[str, str]) -> bool:
        """Return whether a series with these labels matches; Python's regexes are close enough."""
        return all(
            _matches(operator, value, labels.get(name, ""))
            for name, operator, value in self.matchers
        )


def _matches(operator: str, value: str, actual: str) -> bool:
    if operator in {"=", "!="}:
        return (actual == value) == (operator == "=")
    return bool(re.fullmatch(value, actual)) == (operator == "=~")


def selectors(expression: str) -> list[Selector]:
    """Return the series that an expression reads."""
    found = []
    for token in _TOKEN.finditer(_GROUPING.sub(" ", expression)):
        name = token["name"]
        if name is None or token["call"] or name.lower() in _KEYWORDS:
            continue
        matchers = _MATCHER.findall(token["matchers"] or "")
        found.append(
            Selector(
                name, tuple((label, op, yaml.safe_load(value)) for label, op, value in matchers)
            )
        )
    return found


def grouping(expression: str) -> set[str]:
    """Return the labels that an expression names after `by`, `on` and the like."""
    return {
        label.strip() for group in _GROUPING.findall(expression) for label in group.split(",")
    } - {""}


def promtool(*arguments: str | Path, directory: Path) -> str:
    """Run promtool, and return its output. Its failure fails the test."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed; it is part of Debian's package prometheus")
    done = subprocess.run(
        (program, *arguments), cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
