"""The dashboard with the health of everything at a glance."""

from typing import Final

from deploy.grafana.expressions import FAILED_ATTEMPTS, FIRING, LATE, NOT_READY, depth, rate, share
from deploy.grafana.panels import (
    COUNT,
    ON_OFF,
    PER_SECOND,
    REQUESTS,
    SECONDS,
    SHARE,
    Board,
    Row,
    stat,
)

OVERVIEW: Final = Board(
    "ringback-overview",
    "overview",
    "The health of callbacks, schedules, mailings and endpoints at a glance.",
    (
        Row("Alerts", (FIRING, NOT_READY)),
        Row(
            "Callbacks",
            (
                stat(
                    "Delivered callbacks",
                    "Callbacks per second that receivers accepted with 2xx.",
                    REQUESTS,
                    rate('callback_total{status="success"}'),
                ),
                stat(
                    "Failed attempts",
                    "Share of attempts that failed in the last five minutes.",
                    SHARE,
                    FAILED_ATTEMPTS,
                    red_from=0.5,
                ),
                stat(
                    "Waiting callbacks",
                    "Messages in the queue callbacks.",
                    COUNT,
                    'ringback:queue_messages_ready:max{queue="callbacks"}',
                    red_from=10_000,
                ),
                stat(
                    "Callbacks in retry tiers",
                    "Callbacks that wait for their next attempt.",
                    COUNT,
                    "sum(" + depth(r"callbacks\.retry\..+") + ")",
                ),
                stat(
                    "Dead letters",
                    "Messages in all dead-letter queues. They wait for a decision.",
                    COUNT,
                    "sum(" + depth(r".+\.dead") + ")",
                    red_from=1,
                ),
                stat(
                    "Open circuit breakers",
                    "Targets and providers with an open circuit breaker.",
                    COUNT,
                    "count(sum by (target_url) (ringback_breaker_open) > 0) or vector(0)",
                    red_from=1,
                ),
            ),
        ),
        Row(
            "Schedules",
            (
                stat(
                    "Waiting for their time",
                    "Scheduled callbacks that wait for their due time or a main retry.",
                    COUNT,
                    "max(ringback_schedules_waiting)",
                ),
                stat(
                    "Due, not dispatched",
                    "Scheduled callbacks that are due and not yet claimed, at most 10,000.",
                    COUNT,
                    "max(ringback_schedules_due)",
                    red_from=10_000,
                ),
                stat(
                    "Oldest due callback",
                    "Time for which the oldest scheduled callback has been due.",
                    SECONDS,
                    "max(ringback_schedule_oldest_due_seconds)",
                    red_from=60,
                ),
                stat(
                    "Late in the last hour",
                    "Share of scheduled callbacks more than 1 s late. The objective is 0.1 %.",
                    SHARE,
                    LATE,
                    red_from=0.001,
                ),
                stat(
                    "Failed for good in 24 h",
                    "Scheduled callbacks that failed for good.",
                    COUNT,
                    'sum(increase(ringback_schedules_settled_total{status="failed"}[24h]))',
                    red_from=1,
                ),
                stat(
                    "HTTP errors in the last hour",
                    "Share of HTTP responses with a 5xx. The objective is 0.1 %.",
                    SHARE,
                    "ringback:http_errors:ratio_rate1h or vector(0)",
                    red_from=0.001,
                ),
            ),
        ),
        Row(
            "Mailings",
            (
                stat(
                    "Sent messages",
                    "E-mails and SMS per second that a provider accepted.",
                    PER_SECOND,
                    rate('ringback_messages_total{outcome="sent"}'),
                ),
                stat(
                    "Failed attempts to send",
                    "Share of attempts to send that failed in the last five minutes.",
                    SHARE,
                    share(
                        'ringback_messages_total{outcome="attempt_failed"}',
                        'ringback_messages_total{outcome=~"sent|attempt_failed"}',
                    ),
                    red_from=0.5,
                ),
                stat(
                    "Waiting messages",
                    "E-mails and SMS in the queues of delivery.",
                    COUNT,
                    r'sum(ringback:queue_messages_ready:max{queue=~"messages\\..+"})',
                ),
                stat(
                    "Expired in 24 h",
                    "Messages that were not sent before their end.",
                    COUNT,
                    'sum(increase(ringback_messages_total{outcome="expired"}[24h]))',
                    red_from=1,
                ),
                stat(
                    "Failed postings in 24 h",
                    "Postings that can't continue.",
                    COUNT,
                    'sum(increase(ringback_postings_total{outcome=~"failed|invalid"}[24h]))',
                    red_from=1,
                ),
                stat(
                    "Postings wait for delivery",
                    "On while postings pause because too many messages wait.",
                    ON_OFF,
                    "max(ringback_posting_backpressure)",
                ),
            ),
        ),
        Row(
            "Endpoints",
            (
                stat(
                    "Accepted messages",
                    "Messages to endpoints per second.",
                    PER_SECOND,
                    rate("ringback_endpoint_messages_total"),
                ),
                stat(
                    "Deliveries to endpoints",
                    "Messages and user events per second that endpoints accepted.",
                    PER_SECOND,
                    rate('ringback_deliveries_settled_total{status="delivered"}'),
                ),
                stat(
                    "Failed for good",
                    "Share of ended deliveries that failed for good in the last hour.",
                    SHARE,
                    share(
                        'ringback_deliveries_settled_total{status="failed"}',
                        'ringback_deliveries_settled_total{status=~"delivered|failed"}',
                        "1h",
                    ),
                    red_from=0.05,
                ),
                stat(
                    "Disabled in 24 h",
                    "Endpoints that were disabled because they failed for too long or are gone.",
                    COUNT,
                    "sum(increase(ringback_endpoints_disabled_total[24h]))",
                    red_from=1,
                ),
                stat(
                    "Open polls",
                    "Open polls and streams of all gateways.",
                    COUNT,
                    "sum(ringback_open_polls)",
                ),
                stat(
                    "Journal lag",
                    "How far the journal is behind. Deliveries are not affected.",
                    SECONDS,
                    "max(ringback_journal_lag_seconds)",
                    red_from=300,
                ),
            ),
        ),
    ),
)
