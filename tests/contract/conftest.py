"""Golden files record the formats that other programs rely on. A test fails if the code differs.

If the change is intended and documented, `WRITE_GOLDEN=1 pytest tests/contract` writes the new
format. Reviewers read the diff of the golden file.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "golden"

Golden = Callable[[str, Any], None]


@pytest.fixture
def golden() -> Golden:
    """Compare a JSON value with the golden file of that name."""

    def compare(name: str, actual: Any) -> None:
        file = FOLDER / f"{name}.json"
        if os.environ.get("WRITE_GOLDEN"):
            file.write_text(json.dumps(actual, indent=2, ensure_ascii=False) + "\n")
        # As text: the order of fields is part of what readers see.
        assert json.dumps(actual, indent=2) == json.dumps(json.loads(file.read_text()), indent=2)

    return compare
