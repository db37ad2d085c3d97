"""Names and arguments of queues: clients rely on them, and a broker rejects changes."""

import json
from pathlib import Path

import pytest

from services.cli.topology import as_json, mermaid
from shared.topology import QueueType, topology

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "topology.md"


@pytest.mark.parametrize("kind", QueueType)
def test_the_topology_is_unchanged(kind: QueueType) -> None:
    """A change requires a migration of existing brokers. Decide that first, then regenerate:

    cd tests/contract/golden
    ringback topology show --json > topology.quorum.json
    RINGBACK_QUEUE_TYPE=classic ringback topology show --json > topology.classic.json
    """
    golden = json.loads((HERE / "golden" / f"topology.{kind}.json").read_text())

    assert as_json(topology(kind)) == golden


def test_the_picture_in_the_docs_matches_the_topology() -> None:
    assert f"```mermaid\n{mermaid(topology())}\n```" in DOCUMENT.read_text(), (
        "paste the output of `ringback topology show --mermaid` into docs/topology.md"
    )
