"""Names and arguments of queues: clients rely on them, and a broker rejects changes."""

import os
import re
from pathlib import Path

import pytest

from services.cli.topology import as_json, mermaid
from shared.topology import QueueType, topology
from tests.contract.conftest import Golden

PAGE = Path(__file__).parents[2] / "docs" / "topology.md"
_PICTURE = re.compile(r"(?<=```mermaid\n).*?(?=\n```)", re.DOTALL)


@pytest.mark.parametrize("kind", QueueType)
def test_the_topology_is_unchanged(kind: QueueType, golden: Golden) -> None:
    """A change of an existing queue requires a migration of existing brokers."""
    golden(f"topology.{kind}", as_json(topology(kind)))


def test_the_picture_in_the_docs_matches_the_topology() -> None:
    if os.environ.get("WRITE_GOLDEN"):
        PAGE.write_text(_PICTURE.sub(lambda _: mermaid(topology()), PAGE.read_text(), count=1))
    assert _PICTURE.findall(PAGE.read_text()) == [mermaid(topology())]
