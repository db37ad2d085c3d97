"""N14: the alerts of Prometheus are valid, fire, end, and each has a runbook."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY, Gauge

from shared.topology import REQUEST_QUEUES, WORK_QUEUES, tier_queue, topology
from tests.contract.metric_table import RECORDED, RULES, TARGET_LABELS, bounds, series
from tests.fakes.promql import Selector, grouping, promtool, selectors

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "deploy/prometheus"
ALERTS = [rule for rule in RULES if "alert" in rule]
TESTS = sorted(DIRECTORY.glob("*_test.yml"))
RUNBOOKS = (ROOT / "docs/runbooks.md").read_text()
PARTS = ["Users notice:", "Confirm:", "Likely causes:", "What to do:", "Resolves:"]


def entries() -> dict[str, str]:
    """Return the text of each runbook by the name of its alert."""
    _, *found = re.split(r"(?m)^### (\w+)$", RUNBOOKS)
    return {
        name: re.split(r"(?m)^## ", text)[0]
        for name, text in zip(found[::2], found[1::2], strict=True)
    }


def labels_of(expression: str) -> set[str]:
    """Return the labels that the result of an expression can have."""
    known = series()
    return TARGET_LABELS.union(*(known[selector.name] for selector in selectors(expression)))


def test_n14_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", "rules.yml", directory=DIRECTORY)


def test_n14_each_alert_fires_and_ends_in_promtool() -> None:
    promtool("test", "rules", *TESTS, directory=DIRECTORY)


def test_n14_a_test_shows_how_each_alert_fires_and_ends() -> None:
    ended = set()
    for test in (each for file in TESTS for each in yaml.safe_load(file.read_text())["tests"]):
        checks = [
            {sample["labels"] for sample in check.get("exp_samples", ())}
            for check in test["promql_expr_test"]
        ]
        for earlier, later in pairwise(checks):
            ended |= earlier - later
    shown = set()
    for labels in ended:
        [alert] = selectors(labels)
        values = {label: value for label, _, value in alert.matchers}
        shown.add((values["alertname"], values["severity"]))

    assert {(rule["alert"], rule["labels"]["severity"]) for rule in ALERTS} == shown


@pytest.mark.parametrize(
    "rule", ALERTS, ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}"
)
def test_n14_each_alert_says_what_happens_and_links_its_runbook(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"page", "ticket"}
    annotations = rule["annotations"]
    assert annotations["summary"]
    assert annotations["description"].endswith(".")
    # The anchor of the heading, as GitHub builds it.
    assert annotations["runbook_url"] == f"docs/runbooks.md#{rule['alert'].lower()}"
    used = set(re.findall(r"\$labels\.(\w+)", "".join(annotations.values())))
    assert used <= labels_of(rule["expr"])


def test_n14_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    assert {rule["alert"] for rule in ALERTS} == set(entries())


@pytest.mark.parametrize("name", entries())
def test_n14_a_runbook_has_all_parts_in_order(name: str) -> None:
    assert re.findall(r"(?m)^\*\*(.+?)\*\*", entries()[name]) == PARTS


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_n14_a_rule_reads_only_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    known = series()
    found = selectors(rule["expr"])
    assert found
    for selector in found:
        assert selector.name in known
        assert {label for label, _, _ in selector.matchers} <= known[selector.name]
        for label, _, bound in selector.matchers:
            assert label != "le" or bound in bounds(selector.name)
    # label_replace creates the label that its second argument names.
    created = set(re.findall(r'^\s*"(\w+)", "\$1", ', rule["expr"], re.MULTILINE))
    labels = set().union(*(known[each.name] for each in found))
    assert grouping(rule["expr"]) <= labels | created


def test_n14_the_names_in_an_expression_are_found() -> None:
    expression = (
        'sum by (le, queue) (rate(a_bucket{x=~"b|c{1}", y!="d"}[5m])) / on (z) 0.5 * a:b:c'
        ' offset 10m unless label_replace(e, "new", "$1", "old", "(.+)") > 1e-9'
    )
    assert selectors(expression) == [
        Selector("a_bucket", (("x", "=~", "b|c{1}"), ("y", "!=", "d"))),
        Selector("a:b:c"),
        Selector("e"),
    ]
    assert grouping(expression) == {"le", "queue", "z"}


@pytest.mark.parametrize(
    "record", ["ringback:queue_messages_ready:max", "ringback:queue_consumers:max"]
)
def test_n14_backlogs_are_those_of_all_work_queues_and_of_no_other(record: str) -> None:
    [selector] = selectors(RECORDED[record])
    names = {queue.name for queue in topology().queues} | {"invoices", *REQUEST_QUEUES}
    watched = {name for name in names if selector.allows({"queue": name})}
    assert watched == {queue.name for queue in WORK_QUEUES}


def test_n14_stuck_messages_are_those_of_all_tiers() -> None:
    names = {queue.name for queue in topology().queues}
    tiers = {tier_queue(work.name, tier) for work in WORK_QUEUES for tier in work.tiers}
    for selector in selectors(RECORDED["ringback:tier_messages_expired:sum"]):
        assert {name for name in names if selector.allows({"queue": name})} == tiers


def test_n14_a_gauge_of_a_worker_ends_with_the_worker() -> None:
    """Otherwise the last value of a killed worker stays, and an alert about it never ends."""
    series()  # imports every service
    collectors = REGISTRY._collector_to_names  # noqa: SLF001 - families do not have the mode
    gauges = [each for each in collectors if isinstance(each, Gauge)]
    assert gauges
    for gauge in gauges:
        assert gauge._multiprocess_mode.startswith("live"), gauge._name  # noqa: SLF001
