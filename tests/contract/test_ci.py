"""M16: the script that CI runs."""

from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
SCRIPT = CHECKOUT / ".ci/run"


def test_m16_ci_runs_lint_and_the_tests_and_stops_at_the_first_failure() -> None:
    assert SCRIPT.stat().st_mode & 0o111, "the script is not executable"
    lines = SCRIPT.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    assert "set -euo pipefail" in lines
    steps = [line for line in lines if line.startswith("make ")]
    assert steps == ["make lint", "make test"]


def test_m16_lint_and_test_run_every_tool() -> None:
    recipes: dict[str, list[str]] = {}
    for line in (CHECKOUT / "Makefile").read_text().splitlines():
        if line.startswith("\t"):
            list(recipes.values())[-1].append(line)
        elif line and line[0].isalpha() and ":" in line:
            recipes[line.partition(":")[0]] = []
    lint = "\n".join(recipes["lint"])
    assert all(
        tool in lint for tool in ("ruff check", "ruff format --check", "mypy", "lint-imports")
    )
    assert "-m pytest" in "\n".join(recipes["test"])
