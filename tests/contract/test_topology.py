"""Names and arguments at the broker: others rely on them, and a broker refuses other ones."""

import json
from pathlib import Path

import pytest

from services.cli.topology import as_json, mermaid
from shared.topology import QueueType, topology

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "topology.md"


@pytest.mark.parametrize("kind", QueueType)
def test_what_is_declared_is_what_it_was(kind: QueueType) -> None:
    """A change here means that brokers in use have to be migrated: decide that, then write it down.

    cd tests/contract/golden
    ringback topology show --json > topology.quorum.json
    RINGBACK_QUEUE_TYPE=classic ringback topology show --json > topology.classic.json
    """
    golden = json.loads((HERE / "golden" / f"topology.{kind}.json").read_text())

    assert as_json(topology(kind)) == golden


def test_the_picture_in_the_docs_is_the_table_s() -> None:
    assert f"```mermaid\n{mermaid(topology())}\n```" in DOCUMENT.read_text(), (
        "paste the output of `ringback topology show --mermaid` into docs/topology.md"
    )
