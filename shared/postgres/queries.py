"""Named queries: the SQL of a service is in `sql/queries.sql` of its package, or in several files.

Each query begins with a line `-- name: claim`. Tables need their full name, such as
`ingestion.outbox`, because no search path is set.
"""

import re
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Final

_HEADING: Final = re.compile(r"^-- name: (.*)$", re.MULTILINE)
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")


def queries(package: str, name: str = "queries.sql") -> Mapping[str, str]:
    """Return the queries of a service by name: `queries("services.scheduler")["claim"]`.

    `name` is the file in the folder `sql` of the package.

    Raises:
        ValueError: the file is not valid. The text says where.
    """
    file = resources.files(package).joinpath("sql", name)
    return parse(file.read_text(encoding="utf-8"), source=f"{package} sql/{name}")


def parse(text: str, *, source: str) -> Mapping[str, str]:
    """Return the queries in a text.

    Raises:
        ValueError: a name is invalid, missing or not unique, or a query is empty.
    """
    before, *parts = _HEADING.split(text)
    if _code(before):
        raise ValueError(f"{source}: the first query has no line `-- name: …`")
    found: dict[str, str] = {}
    for name, sql in zip(parts[::2], parts[1::2], strict=True):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{source}: {name!r} is not a valid name; write it like_this")
        if name in found:
            raise ValueError(f"{source}: two queries are named {name}")
        if not _code(sql):
            raise ValueError(f"{source}: the query {name} is empty")
        found[name] = sql.strip()
    return MappingProxyType(found)


def _code(sql: str) -> str:
    """Return the text without comment lines."""
    return "".join(line for line in sql.splitlines() if not line.lstrip().startswith("--")).strip()
