"""The alerts see the first occurrence, because their series exist before it."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.command import ROOT
from tests.fakes.promql import Selector, selectors
from tests.fakes.system import fresh_database, system

SERVICES = (
    *("callback", "scheduler", "ingestion", "mailings", "delivery", "subscriptions"),
    "journal",
)
# One has a series for each route and status that has occurred, the other only with --workers.
EXCEPTIONS = {"ringback_http_requests_total", "ringback_worker_restarts_total"}


def alerts() -> Iterator[Selector]:
    """Yield the counters of each alert. A choice of values yields one for each."""
    for group in yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            for counter in selectors(rule["expr"] if "alert" in rule else ""):
                if not counter.name.endswith("_total") or counter.name in EXCEPTIONS:
                    continue
                choices = [
                    [(label, "=", each) for each in value.split("|")]
                    for label, _, value in counter.matchers
                ]
                for matchers in product(*choices):
                    yield Selector(counter.name, matchers)


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
    assert len(wanted) >= 20
    missing = [
        counter
        for counter in wanted
        if not any(
            sample.name == counter.name and counter.allows(sample.labels) for sample in series
        )
    ]
    assert missing == []
