"""The rules of Prometheus, and the metrics that exist: those of services, and those of others."""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from prometheus_client import REGISTRY

from shared.registry import SERVICES
from tests.fakes.promql import grouping

RULES_FILE = Path(__file__).parents[2] / "deploy/prometheus/rules.yml"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]
]
# The expressions of recorded series, by name.
RECORDED: dict[str, str] = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}


class RegisteredMetric(NamedTuple):
    """A metric as docs/metrics.md lists it."""

    name: str
    labels: tuple[str, ...]
    type: str


def registered() -> set[RegisteredMetric]:
    """Return every metric of every service."""
    for service in SERVICES.values():
        import_module(f"{service.module}.app")
    metrics = {
        RegisteredMetric(
            f"{family.name}_total" if family.type == "counter" else family.name,
            tuple(getattr(collector, "_labelnames", ())),
            family.type,
        )
        for collector in REGISTRY._collector_to_names  # noqa: SLF001 - families do not have labels
        for family in collector.collect()
    }
    # The parent process of workers registers one more.
    return metrics | {RegisteredMetric("ringback_worker_restarts_total", (), "counter")}


def bounds(bucket: str) -> set[str]:
    """Return the values of `le` of a histogram without other labels."""
    return {
        sample.labels["le"]
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == bucket
    }


# The labels that Prometheus adds to all series of a target; docs/observability.md requires them.
TARGET_LABELS = {"job", "instance", "service"}
# Metrics of RabbitMQ, with their labels. An integration test finds them in a live broker.
RABBITMQ = {
    "rabbitmq_detailed_queue_messages": {"vhost", "queue"},
    "rabbitmq_detailed_queue_messages_ready": {"vhost", "queue"},
    "rabbitmq_detailed_queue_consumers": {"vhost", "queue"},
    "rabbitmq_alarms_memory_used_watermark": set[str](),
    "rabbitmq_alarms_free_disk_space_watermark": set[str](),
    "rabbitmq_process_resident_memory_bytes": set[str](),
    "rabbitmq_resident_memory_limit_bytes": set[str](),
    "rabbitmq_disk_space_available_bytes": set[str](),
    "rabbitmq_disk_space_available_limit_bytes": set[str](),
}
# Metrics of Prometheus itself.
PROMETHEUS = {"up": set[str](), "ALERTS": {"alertname", "alertstate", "severity", "queue"}}


def series() -> dict[str, set[str]]:
    """Return the labels of every series in Prometheus, by name."""
    found: dict[str, set[str]] = {}
    for metric in registered():
        labels = {*metric.labels, *TARGET_LABELS}
        if metric.type == "histogram":
            found[f"{metric.name}_bucket"] = {*labels, "le"}
            found[f"{metric.name}_sum"] = found[f"{metric.name}_count"] = labels
        else:
            found[metric.name] = labels
    for name, others in (RABBITMQ | PROMETHEUS).items():
        found[name] = others | TARGET_LABELS
    return found | {name: grouping(expression) for name, expression in RECORDED.items()}
