"""The dashboard of attempts, retries and receivers."""

from typing import Final

from deploy.grafana.expressions import FAILED_ATTEMPTS, depth, rate
from deploy.grafana.panels import (
    COUNT,
    PER_SECOND,
    REQUESTS,
    SECONDS,
    SHARE,
    Board,
    Row,
    graph,
    quantiles,
)

MEAN_DURATION: Final = " / ".join(
    rate(f"callback_duration_seconds_{part}", "target_url") for part in ("sum", "count")
)
CALLBACKS: Final = Board(
    "ringback-callbacks",
    "callbacks",
    "Attempts, retries and receivers of callbacks.",
    (
        Row(
            "Attempts",
            (
                graph(
                    "Attempts",
                    "HTTP requests to receivers, by result.",
                    REQUESTS,
                    (rate("callback_total", "status"), "{{status}}"),
                ),
                graph(
                    "Failed attempts",
                    "Share of attempts that failed, over five minutes.",
                    SHARE,
                    (FAILED_ATTEMPTS, "failed"),
                ),
                quantiles(
                    "Duration of an attempt",
                    "From the connection to the response of the receiver, or to its timeout.",
                    "callback_duration_seconds",
                ),
                graph(
                    "Targets with the most attempts",
                    "Attempts to the ten busiest targets.",
                    REQUESTS,
                    (
                        f"topk(10, {rate('callback_duration_seconds_count', 'target_url')})",
                        "{{target_url}}",
                    ),
                ),
                graph(
                    "Slowest targets",
                    "Mean duration of an attempt at the ten slowest targets.",
                    SECONDS,
                    (f"topk(10, {MEAN_DURATION})", "{{target_url}}"),
                ),
                graph(
                    "Callbacks without a signature",
                    "Callbacks that were not sent, because their secret is malformed or unknown.",
                    PER_SECOND,
                    (rate("hmac_errors_total"), "unsigned"),
                ),
            ),
        ),
        Row(
            "Retries",
            (
                graph(
                    "Finished messages",
                    "Messages of the queue callbacks by outcome. A deferral is not an attempt.",
                    PER_SECOND,
                    (rate('ringback_consumed_total{queue="callbacks"}', "outcome"), "{{outcome}}"),
                ),
                graph(
                    "Queue and tiers",
                    "Messages in the queue callbacks, its retry tiers and its dead-letter queue.",
                    COUNT,
                    (depth(r"callbacks(\..+)?"), "{{queue}}"),
                ),
                graph(
                    "Open circuit breakers",
                    "Open circuit breakers by target: one for each worker and client. Also the"
                    " processes that have no list of paused targets.",
                    COUNT,
                    ("sum by (target_url) (ringback_breaker_open) > 0", "{{target_url}}"),
                    ("count(ringback_paused_targets_known == 0)", "processes without pauses"),
                ),
                graph(
                    "Changes of circuit breakers",
                    "How often circuit breakers open and close.",
                    PER_SECOND,
                    (rate("ringback_breaker_changes_total", "state"), "{{state}}"),
                ),
            ),
        ),
    ),
)
