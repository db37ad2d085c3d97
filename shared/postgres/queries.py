"""Named queries: a service's SQL stands in `sql/queries.sql` of its package.

Each query begins with a line `-- name: claim`; other comments may stand anywhere. A query may
refer to tables by their full name only, `scheduler.events`: no search path is set.
"""

import re
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Final

_HEADING: Final = re.compile(r"^-- name: (.*)$", re.MULTILINE)
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")


def queries(package: str) -> Mapping[str, str]:
    """The queries of a service, by name: `queries("services.scheduler")["claim"]`.

    Raises:
        ValueError: the file can't be understood; says where.
    """
    file = resources.files(package).joinpath("sql", "queries.sql")
    return parsed(file.read_text(encoding="utf-8"), source=f"{package} sql/queries.sql")


def parsed(text: str, *, source: str) -> Mapping[str, str]:
    """The queries in a text.

    Raises:
        ValueError: a name is wrong or there twice, a query is empty, or one has no name.
    """
    before, *parts = _HEADING.split(text)
    if _code(before):
        raise ValueError(f"{source}: the first query has no line `-- name: …` above it")
    found: dict[str, str] = {}
    for name, sql in zip(parts[::2], parts[1::2], strict=True):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{source}: {name!r} is no name; write it like_this")
        if name in found:
            raise ValueError(f"{source}: there are two queries named {name}")
        if not _code(sql):
            raise ValueError(f"{source}: the query {name} is empty")
        found[name] = sql.strip()
    return MappingProxyType(found)


def _code(sql: str) -> str:
    """What is left without comment lines."""
    return "".join(line for line in sql.splitlines() if not line.lstrip().startswith("--")).strip()
