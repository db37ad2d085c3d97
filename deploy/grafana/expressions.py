"""The expressions that several dashboards share."""

from typing import Final

from deploy.grafana.panels import COUNT, Panel, Query


def rate(series: str, *by: str) -> str:
    """Return the rate of a counter per second, summed by labels."""
    grouping = f" by ({', '.join(by)})" if by else ""
    return f"sum{grouping} (rate({series}[$__rate_interval]))"


def share(part: str, whole: str, window: str = "5m") -> str:
    """Return the ratio of the rates of two counters, 0 while nothing happens."""
    return (
        f"sum(rate({part}[{window}])) / clamp_min(sum(rate({whole}[{window}])), 1e-9) or vector(0)"
    )


def depth(queues: str) -> str:
    """Return the number of messages in each queue whose name matches."""
    pattern = queues.replace("\\", "\\\\")  # a string of PromQL
    return f'max by (queue) (rabbitmq_detailed_queue_messages{{queue=~"{pattern}"}})'


def _table(title: str, description: str, expr: str) -> Panel:
    """Return a panel with one row for each series."""
    return Panel(title, description, COUNT, (Query(expr, ""),), "table", width=12)


FIRING: Final = _table(
    "Firing alerts",
    "Alerts of deploy/prometheus/rules.yml that fire now. docs/runbooks.md has an entry for each.",
    "count by (alertname, severity, service, queue)"
    ' (ALERTS{alertname=~"Ringback.*", alertstate="firing"})',
)
NOT_READY: Final = _table(
    "Parts that are not ready",
    "Parts of /readyz that are not ready in some process. The log has the reason.",
    "count by (service, part) (ringback_part_ready == 0)",
)
FAILED_ATTEMPTS: Final = share('callback_total{status="error"}', "callback_total")
LATE: Final = "ringback:schedules_late:ratio_rate1h or vector(0)"
