"""The dashboard of endpoints of customers, and users."""

from typing import Final

from deploy.grafana.expressions import depth, rate
from deploy.grafana.panels import (
    COUNT,
    ON_OFF,
    PER_SECOND,
    Board,
    Row,
    graph,
)

ENDPOINTS: Final = Board(
    "ringback-endpoints",
    "endpoints",
    "Endpoints of customers, and events of users.",
    (
        Row(
            "Endpoints",
            (
                graph(
                    "Accepted messages",
                    "Messages of clients to their customers' endpoints, repeats included.",
                    PER_SECOND,
                    (rate("ringback_endpoint_messages_total"), "messages"),
                ),
                graph(
                    "Dispatches",
                    "Deliveries published to the queue callbacks.",
                    PER_SECOND,
                    (rate("ringback_deliveries_dispatched_total", "outcome"), "{{outcome}}"),
                ),
                graph(
                    "Results of deliveries",
                    "Delivered, failed for good, or pending: dispatched again later.",
                    PER_SECOND,
                    (rate("ringback_deliveries_settled_total", "status"), "{{status}}"),
                ),
                graph(
                    "Disabled endpoints",
                    "Endpoints disabled in an hour, because they failed for too long or are gone.",
                    COUNT,
                    ("sum(increase(ringback_endpoints_disabled_total[1h]))", "disabled"),
                ),
                graph(
                    "The queue callbacks is full",
                    "On while due deliveries wait, because the queue callbacks is full.",
                    ON_OFF,
                    ("max(ringback_delivery_backpressure)", "subscriptions"),
                ),
            ),
        ),
        Row(
            "Users",
            (
                graph(
                    "User events",
                    "Events of users by outcome.",
                    PER_SECOND,
                    (rate("ringback_user_events_total", "outcome"), "{{outcome}}"),
                ),
                graph(
                    "Open polls",
                    "Open polls and streams by gateway. RINGBACK_GATEWAY_POLLS limits them.",
                    COUNT,
                    ("sum by (instance) (ringback_open_polls)", "{{instance}}"),
                ),
                graph(
                    "Sign-ins",
                    "Sign-ins of users of the messenger by outcome.",
                    PER_SECOND,
                    (rate("ringback_sign_ins_total", "outcome"), "{{outcome}}"),
                ),
                graph(
                    "Queue of user events",
                    "Messages in the queue user_events, its tiers and its dead-letter queue.",
                    COUNT,
                    (depth(r"user_events(\..+)?"), "{{queue}}"),
                ),
            ),
        ),
    ),
)
