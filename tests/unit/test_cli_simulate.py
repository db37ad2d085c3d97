"""N15: `ringback simulate` prints a table or JSON, and draws a plot."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner, Result

from services.cli.simulate import EXAMPLE, simulate
from services.simulator.scenario import parse


def run(*arguments: str) -> Result:
    return CliRunner().invoke(simulate, arguments)


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where there is no ringback.toml."""
    monkeypatch.chdir(tmp_path)


def test_n15_the_table_answers_the_common_question() -> None:
    result = run("--rate", "2", "--down", "5 min", "--for", "6 min")
    assert result.exit_code == 0, result.output
    heading, line = result.stdout.splitlines()
    assert heading.split()[:5] == ["TARGET", "CALLBACKS", "ATTEMPTS", "DELIVERED", "DEAD"]
    name, callbacks, _, delivered, dead, waiting, *_ = line.split()
    assert (name, callbacks, delivered, dead, waiting) == ("target", "720", "720", "0", "0")
    assert "with seed 1" in result.stderr


def test_n15_the_json_has_the_figures_and_their_course() -> None:
    result = run("--rate", "5", "--failing", "0.2", "--for", "20", "--json")
    content = json.loads(result.stdout)
    (target,) = content["targets"]
    assert target["callbacks"] == target["delivered"] == sum(content["course"]["delivered"]) == 100
    assert target["attempts"] == sum(content["course"]["attempts"]) > 100


def test_n15_the_plot_is_one_svg_with_all_charts(tmp_path: Path) -> None:
    svg = tmp_path / "plot.svg"
    down = ("--rate", "2", "--down", "2 min", "--response", "503", "--for", "200")
    assert run(*down, "--svg", str(svg)).exit_code == 0
    root = ET.fromstring(svg.read_text())  # noqa: S314 - our own
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"Attempts and deliveries a second", "Waiting callbacks", "delivered"} <= texts


def test_n15_the_example_is_valid_and_can_be_saved() -> None:
    result = run("--example")
    assert result.stdout == EXAMPLE.read_text()
    assert [target.name for target in parse(result.stdout).targets] == [
        *("shop", "crm", "reminders")
    ]


def test_n15_a_file_that_is_not_valid_names_every_fault(tmp_path: Path) -> None:
    file = tmp_path / "simulation.toml"
    file.write_text('duration = 0\ntargets = [{ name = "", rate = 1 }]')
    result = run(str(file))
    assert result.exit_code == 1
    assert "duration" in result.output
    assert "targets.0.name" in result.output


def test_n15_only_what_is_wrong_is_named(tmp_path: Path) -> None:
    result = run("--rate", "1", "--down", "1 min", "--response", "700")
    assert result.exit_code == 1
    [line] = result.output.splitlines()[1:]
    assert line.strip().startswith("targets.0.outages.0.response: must be timeout, unreachable")
    file = tmp_path / "simulation.toml"
    file.write_text("duration = 1\ntargets = []")
    assert "targets: must have at least one target" in run(str(file)).output


def test_n15_an_option_without_effect_is_refused() -> None:
    result = run("--rate", "1", "--response", "503")
    assert result.exit_code == 2
    assert "--down" in result.output
    assert "duration: " in run("--rate", "1", "--for", "0").output


def test_n15_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Some editors write one."""
    file = tmp_path / "simulation.toml"
    file.write_text('duration = 1\ntargets = [{ name = "a", rate = 1 }]', encoding="utf-8-sig")
    assert run(str(file)).exit_code == 0


def test_n15_file_and_rate_exclude_each_other() -> None:
    assert run().exit_code == 2
    assert run(str(EXAMPLE), "--rate", "1").exit_code == 2
    assert run(str(EXAMPLE), "--workers", "3").exit_code == 2
    assert run("--rate", "0").exit_code == 1
    assert run("--rate", "1", "--down", "2 parsecs").exit_code == 2
    assert run("--rate", "1", "--response", "oops").exit_code == 2
