"""The dashboard of events, postings, e-mails and SMS."""

from typing import Final

from deploy.grafana.expressions import depth, rate
from deploy.grafana.panels import (
    COUNT,
    ON_OFF,
    PER_SECOND,
    Board,
    Row,
    graph,
    quantiles,
)

MAILINGS: Final = Board(
    "ringback-mailings",
    "mailings",
    "From events to postings, e-mails and SMS.",
    (
        Row(
            "Events and postings",
            (
                graph(
                    "Events",
                    "Events of producers by outcome.",
                    PER_SECOND,
                    (rate("ringback_events_total", "outcome"), "{{outcome}}"),
                ),
                graph(
                    "Commands of events",
                    "Commands that rules publish, by kind and outcome.",
                    PER_SECOND,
                    (rate("ringback_commands_total", "kind", "outcome"), "{{kind}} {{outcome}}"),
                ),
                graph(
                    "Postings",
                    "Postings by outcome.",
                    PER_SECOND,
                    (rate("ringback_postings_total", "outcome"), "{{outcome}}"),
                ),
                graph(
                    "Messages of postings",
                    "Messages by channel and outcome.",
                    PER_SECOND,
                    (
                        rate("ringback_posting_messages_total", "channel", "outcome"),
                        "{{channel}} {{outcome}}",
                    ),
                ),
                quantiles(
                    "Duration of a page",
                    "A page of recipients, until it is fetched, and until it is published.",
                    "ringback_posting_page_seconds",
                    by="step",
                ),
                graph(
                    "Postings wait for delivery",
                    "On while postings pause, because too many messages wait in a queue.",
                    ON_OFF,
                    ("max by (queue) (ringback_posting_backpressure)", "{{queue}}"),
                ),
            ),
        ),
        Row(
            "E-mail and SMS",
            (
                graph(
                    "Attempts to send",
                    "Attempts by channel and outcome.",
                    PER_SECOND,
                    (
                        rate("ringback_messages_total", "channel", "outcome"),
                        "{{channel}} {{outcome}}",
                    ),
                ),
                quantiles(
                    "Duration of a successful attempt",
                    "Until the provider has accepted a message, connecting included.",
                    "ringback_message_duration_seconds",
                    by="channel",
                ),
                graph(
                    "Queues of delivery",
                    "Messages that wait for delivery, in tiers, or as dead letters.",
                    COUNT,
                    (depth(r"messages\..+"), "{{queue}}"),
                ),
                graph(
                    "Repeats",
                    "Messages that arrived again after they were sent. They are not sent again.",
                    PER_SECOND,
                    (rate("ringback_message_repeats_total", "channel"), "{{channel}}"),
                ),
                graph(
                    "Unavailable providers",
                    "Open circuit breakers of mail servers and SMS gateways.",
                    COUNT,
                    (
                        'sum by (target_url) (ringback_breaker_open{service="delivery"})',
                        "{{target_url}}",
                    ),
                ),
            ),
        ),
    ),
)
