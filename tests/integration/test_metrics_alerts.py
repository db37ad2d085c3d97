"""The alerts of docs/metrics.md see the first occurrence, because their series exist before it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.command import ROOT
from tests.fakes.system import fresh_database, system

SERVICES = (
    *("callback", "scheduler", "ingestion", "mailings", "delivery", "subscriptions"),
    "journal",
)
# A counter in `increase(…[5m])` or `rate(…[5m])`, with at most one matcher.
SELECTOR = re.compile(r"(?:increase|rate)\((\w+)(?:\{(\w+)=~?\"([^\"]+)\"\})?\[5m\]\)")


def alerts() -> Iterator[tuple[str, str, str]]:
    """Yield the series of each alert: metric, label and value; both are empty without a matcher."""
    _, section = (ROOT / "docs/metrics.md").read_text().split("## Alerts")
    for metric, label, values in SELECTOR.findall(section):
        for value in values.split("\\|"):
            yield metric, label, value


@pytest.fixture
def own_database_url(database_url: str) -> Iterator[str]:
    with fresh_database(database_url) as url:
        yield url


# H4
async def test_h4_finding_d12_metrics_have_our_prefix_and_no_creation_times(
    tmp_path: Path, amqp_url: str, own_database_url: str
) -> None:
    fixed = (
        "callback_total",
        "callback_duration_seconds_",
        "hmac_errors_total",
        "amqp_reconnects_total",
    )
    with system(tmp_path, amqp_url, own_database_url, "callback", "scheduler") as services:
        names = set()
        for service in (await services.ready()).values():
            _, text = await service.get("/metrics")
            names |= {
                sample.name
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
    assert len(names) > 20
    assert [name for name in names if name.endswith("_created")] == []
    assert [name for name in names if not name.startswith(("ringback_", *fixed))] == []


async def test_finding_d9_every_series_of_an_alert_exists_before_its_first_count(
    tmp_path: Path, amqp_url: str, own_database_url: str
) -> None:
    """Finding D9: `increase()` misses the first count of a series that did not exist before."""
    delivery = {
        "RINGBACK_SMTP_URL": "smtp://127.0.0.1:1",
        "RINGBACK_SMS_URL": "http://127.0.0.1:1",
        "RINGBACK_SMS_KEY": "key",
    }
    found: list[Metric] = []
    with system(tmp_path, amqp_url, own_database_url, *SERVICES, **delivery) as services:
        for service in (await services.ready()).values():
            _, text = await service.get("/metrics")
            found += text_string_to_metric_families(text)
    series = [sample for metric in found for sample in metric.samples]

    wanted = list(alerts())
    assert len(wanted) >= 10
    missing = [
        (name, label, value)
        for name, label, value in wanted
        if not any(
            sample.name == name and (not label or sample.labels.get(label) == value)
            for sample in series
        )
    ]
    assert missing == []
