"""N14: the dashboards are what their program writes, and read only what exists."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.boards import BOARDS
from deploy.grafana.panels import COLUMNS, render
from tests.contract.metric_table import RECORDED, registered, series
from tests.fakes.promql import grouping, promtool, selectors

DIRECTORY = Path(__file__).parents[2] / "deploy/grafana/dashboards"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in DIRECTORY.glob("*.json")}
# A range and an interval, as Grafana fills them in.
VARIABLES = {"$__rate_interval": "2m"}
# No panel: limits are in panels of their values, and virtual memory says nothing.
NOT_SHOWN = {"ringback_process_virtual_memory_bytes"}


def panels(uid: str) -> Iterator[dict[str, Any]]:
    """Yield the panels of a dashboard, without the headings."""
    yield from (panel for panel in DASHBOARDS[uid]["panels"] if panel["type"] != "row")


def expressions(panel: dict[str, Any]) -> Iterator[str]:
    """Yield the expressions of a panel, with its variables filled in."""
    for target in panel["targets"]:
        expression = target["expr"]
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        assert "$" not in expression
        yield expression


PANELS = [
    pytest.param(panel, id=f"{uid}: {panel['title']}")
    for uid in sorted(DASHBOARDS)
    for panel in panels(uid)
]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_n14_a_dashboard_is_what_its_program_writes(board: Any) -> None:
    path = DIRECTORY / f"{board.uid}.json"
    if "WRITE_GOLDEN" in os.environ:
        path.write_text(render(board))
    assert path.read_text() == render(board)


def test_n14_there_is_a_dashboard_for_everything_and_no_other_file() -> None:
    assert set(DASHBOARDS) == {board.uid for board in BOARDS}
    assert len({dashboard["title"] for dashboard in DASHBOARDS.values()}) == len(BOARDS)


@pytest.mark.parametrize("panel", PANELS)
def test_n14_a_panel_explains_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= COLUMNS


@pytest.mark.parametrize("panel", PANELS)
def test_n14_a_panel_reads_only_metrics_and_labels_that_exist(panel: dict[str, Any]) -> None:
    known = series()
    for target, expression in zip(panel["targets"], expressions(panel), strict=True):
        found = selectors(expression)
        assert found
        for selector in found:
            assert selector.name in known
            assert {label for label, _, _ in selector.matchers} <= known[selector.name]
        labels = set[str]().union(*(known[each.name] for each in found))
        assert grouping(expression) <= labels
        shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert shown <= (grouping(expression) or labels)


def test_n14_promtool_parses_the_expression_of_each_panel(tmp_path: Path) -> None:
    found = [each for uid in DASHBOARDS for panel in panels(uid) for each in expressions(panel)]
    rules = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(found)]
    groups = {"groups": [{"name": "panels", "rules": rules}]}
    (tmp_path / "panels.yml").write_text(yaml.safe_dump(groups))
    assert len(found) > 80
    promtool("check", "rules", "panels.yml", directory=tmp_path)


def test_n14_every_metric_of_the_product_is_on_a_dashboard() -> None:
    read = {
        selector.name
        for uid in DASHBOARDS
        for panel in panels(uid)
        for expression in expressions(panel)
        for selector in selectors(expression)
    }
    read |= {each.name for name in read & RECORDED.keys() for each in selectors(RECORDED[name])}
    bases = {re.sub(r"_(bucket|sum|count)$", "", name) for name in read} | read
    assert {metric.name for metric in registered()} - bases == NOT_SHOWN


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_n14_panels_do_not_overlap(uid: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARDS[uid]["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken
        taken |= cells
