"""The dashboard of due times and results."""

from typing import Final

from deploy.grafana.expressions import rate
from deploy.grafana.panels import (
    COUNT,
    ON_OFF,
    PER_SECOND,
    SECONDS,
    SHARE,
    Board,
    Row,
    graph,
    quantiles,
)

SCHEDULES: Final = Board(
    "ringback-schedules",
    "schedules",
    "Scheduled callbacks: requests, due times and results.",
    (
        Row(
            "In time",
            (
                quantiles(
                    "Lag",
                    "From the due time to the confirmed first dispatch.",
                    "ringback_schedule_lag_seconds",
                ),
                graph(
                    "Late callbacks",
                    "Share of callbacks more than 1 s late. The objective is 0.1 % over 30 days.",
                    SHARE,
                    ("ringback:schedules_late:ratio_rate5m", "5 minutes"),
                    ("ringback:schedules_late:ratio_rate1h", "1 hour"),
                    ("ringback:schedules_late:ratio_rate6h", "6 hours"),
                    ("ringback:schedules_late:ratio_rate3d", "3 days"),
                ),
                graph(
                    "Oldest due callback",
                    "Time for which the oldest scheduled callback has been due without a dispatch.",
                    SECONDS,
                    ("max(ringback_schedule_oldest_due_seconds)", "oldest"),
                ),
                graph(
                    "Waiting and due",
                    "Scheduled callbacks that wait for their time, and those that are due.",
                    COUNT,
                    ("max(ringback_schedules_waiting)", "waiting"),
                    ("max(ringback_schedules_due)", "due"),
                ),
                graph(
                    "Misfires",
                    "Callbacks that were more than 60 s late, by what was done.",
                    PER_SECOND,
                    (rate("ringback_schedule_misfires_total", "policy"), "{{policy}}"),
                ),
                graph(
                    "The queue callbacks is full",
                    "On while due callbacks wait, because the queue callbacks is full.",
                    ON_OFF,
                    ("max(ringback_schedule_backpressure)", "scheduler"),
                ),
            ),
        ),
        Row(
            "Results",
            (
                graph(
                    "Requests to schedule",
                    "Requests by outcome.",
                    PER_SECOND,
                    (rate("ringback_schedules_created_total", "outcome"), "{{outcome}}"),
                ),
                graph(
                    "Dispatches",
                    "Dispatches published to the broker. Unpublished ones are due again.",
                    PER_SECOND,
                    (rate("ringback_schedules_dispatched_total", "outcome"), "{{outcome}}"),
                ),
                graph(
                    "Results of dispatches",
                    "Occurrences that ended, and main retries.",
                    PER_SECOND,
                    (rate("ringback_schedules_settled_total", "status"), "{{status}}"),
                ),
                quantiles(
                    "Duration of a claim",
                    "Time in which PostgreSQL returns a batch of due callbacks.",
                    "ringback_schedule_claim_seconds",
                ),
                graph(
                    "Clock of callback services",
                    "How far the clock of a callback service was ahead of the database's, at most.",
                    SECONDS,
                    ("max(ringback_callback_clock_skew_seconds)", "seen by schedulers"),
                    ("max(ringback_delivery_clock_skew_seconds)", "seen by subscriptions"),
                ),
            ),
        ),
    ),
)
