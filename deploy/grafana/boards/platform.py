"""The dashboard of the broker, the database and the processes."""

from typing import Final

from deploy.grafana.expressions import FIRING, NOT_READY, depth, rate
from deploy.grafana.panels import (
    BYTES,
    COUNT,
    ON_OFF,
    PER_SECOND,
    REQUESTS,
    SECONDS,
    SHARE,
    Board,
    Row,
    graph,
    quantiles,
)

PLATFORM: Final = Board(
    "ringback-platform",
    "broker, database and processes",
    "RabbitMQ, PostgreSQL as Ringback sees it, HTTP, the journal, and all processes.",
    (
        Row("Health", (FIRING, NOT_READY)),
        Row(
            "RabbitMQ",
            (
                graph(
                    "Waiting messages",
                    "Messages that wait in each work queue.",
                    COUNT,
                    ("ringback:queue_messages_ready:max", "{{queue}}"),
                ),
                graph(
                    "Dead letters",
                    "Messages in each dead-letter queue.",
                    COUNT,
                    (depth(r".+\.dead") + " > 0", "{{queue}}"),
                ),
                graph(
                    "Consumers",
                    "Consumers of each work queue. Without one, its messages wait.",
                    COUNT,
                    ("ringback:queue_consumers:max", "{{queue}}"),
                ),
                graph(
                    "Finished messages",
                    "Messages that consumers have finished, by queue.",
                    PER_SECOND,
                    (rate("ringback_consumed_total", "queue"), "{{queue}}"),
                ),
                graph(
                    "Lost connections",
                    "Lost connections to RabbitMQ, by service.",
                    PER_SECOND,
                    (rate("amqp_reconnects_total", "service"), "{{service}}"),
                ),
                graph(
                    "Alarms",
                    "On while an alarm of a node blocks publishing.",
                    ON_OFF,
                    ("rabbitmq_alarms_memory_used_watermark", "memory {{instance}}"),
                    ("rabbitmq_alarms_free_disk_space_watermark", "disk {{instance}}"),
                ),
                graph(
                    "Memory of RabbitMQ",
                    "Memory of each node. An alarm goes on at its limit.",
                    BYTES,
                    ("rabbitmq_process_resident_memory_bytes", "{{instance}}"),
                    ("rabbitmq_resident_memory_limit_bytes", "limit {{instance}}"),
                ),
                graph(
                    "Free disk of RabbitMQ",
                    "Free disk space of each node. An alarm goes on at its limit.",
                    BYTES,
                    ("rabbitmq_disk_space_available_bytes", "{{instance}}"),
                    ("rabbitmq_disk_space_available_limit_bytes", "limit {{instance}}"),
                ),
                graph(
                    "Dropped facts",
                    "Messages with facts that observers missed, by reason.",
                    PER_SECOND,
                    (
                        rate("ringback_fact_messages_dropped_total", "service", "reason"),
                        "{{service}} {{reason}}",
                    ),
                ),
            ),
        ),
        Row(
            "PostgreSQL and the journal",
            (
                graph(
                    "Services without a database",
                    "On while a process of the service can't use PostgreSQL.",
                    ON_OFF,
                    ('1 - min by (service) (ringback_part_ready{part="database"})', "{{service}}"),
                ),
                quantiles(
                    "Duration of a claim",
                    "Time in which PostgreSQL returns a batch of due callbacks.",
                    "ringback_schedule_claim_seconds",
                ),
                quantiles(
                    "Duration of a batch of facts",
                    "Time in which the journal stores a batch in PostgreSQL.",
                    "ringback_journal_batch_seconds",
                ),
                graph(
                    "Facts of the journal",
                    "Facts by outcome.",
                    PER_SECOND,
                    (rate("ringback_journal_facts_total", "outcome"), "{{outcome}}"),
                ),
                graph(
                    "Lag of the journal",
                    "How far the journal is behind.",
                    SECONDS,
                    ("max(ringback_journal_lag_seconds)", "lag"),
                ),
                graph(
                    "Backlog of the journal",
                    "Messages in the stream that are not stored, and messages that it has missed.",
                    COUNT,
                    ("max(ringback_journal_lag_messages)", "not stored"),
                    ("sum(increase(ringback_journal_missed_messages_total[1h]))", "missed in 1 h"),
                    (
                        "sum(increase(ringback_journal_reindexed_queues_total[1h]))",
                        "queues read again in 1 h",
                    ),
                ),
            ),
        ),
        Row(
            "HTTP",
            (
                graph(
                    "Responses of the API",
                    "Responses of the gateways by status.",
                    REQUESTS,
                    (rate("ringback_http_requests_total", "status"), "{{status}}"),
                ),
                graph(
                    "Errors of the API",
                    "Responses with a 5xx, by route.",
                    REQUESTS,
                    (
                        rate('ringback_http_requests_total{status=~"5.."}', "route", "status"),
                        "{{route}} {{status}}",
                    ),
                ),
                quantiles(
                    "Duration of a request",
                    "From the request's headers to the response, by method. Polls wait for events.",
                    "ringback_http_request_duration_seconds",
                    by="method",
                ),
                graph(
                    "Requests between services",
                    "RPC requests over AMQP, by queue and outcome.",
                    REQUESTS,
                    (
                        rate("ringback_requests_answered_total", "queue", "outcome"),
                        "{{queue}} {{outcome}}",
                    ),
                ),
                graph(
                    "Responses of the console",
                    "Responses of the console by status.",
                    REQUESTS,
                    (rate("ringback_console_requests_total", "status"), "{{status}}"),
                ),
                graph(
                    "Sign-ins to the console",
                    "Sign-ins by result.",
                    PER_SECOND,
                    (rate("ringback_console_sign_ins_total", "result"), "{{result}}"),
                ),
                quantiles(
                    "Duration of a page of the console",
                    "From the request's headers to the response.",
                    "ringback_console_request_duration_seconds",
                ),
            ),
        ),
        Row(
            "Processes",
            (
                graph(
                    "Processes",
                    "Processes that respond to Prometheus, by service.",
                    COUNT,
                    ('sum by (service) (up{job="ringback"})', "{{service}}"),
                ),
                graph(
                    "CPU",
                    "Cores that each process uses. Not known with --workers.",
                    COUNT,
                    (
                        "rate(ringback_process_cpu_seconds_total[$__rate_interval])",
                        "{{service}} {{instance}}",
                    ),
                ),
                graph(
                    "Memory",
                    "Resident memory of each process. Not known with --workers.",
                    BYTES,
                    ("ringback_process_resident_memory_bytes", "{{service}} {{instance}}"),
                ),
                graph(
                    "Open files",
                    "Share of the file descriptors that each process may open.",
                    SHARE,
                    (
                        "ringback_process_open_fds / ringback_process_max_fds",
                        "{{service}} {{instance}}",
                    ),
                ),
                graph(
                    "Age of processes",
                    "Time since the start of each process.",
                    SECONDS,
                    ("time() - ringback_process_start_time_seconds", "{{service}} {{instance}}"),
                ),
                graph(
                    "Restarts and bugs",
                    "Restarted workers, unexpected errors of handlers, and dropped log lines.",
                    PER_SECOND,
                    (rate("ringback_worker_restarts_total", "service"), "restarts {{service}}"),
                    (rate("ringback_handler_bugs_total", "queue"), "bugs {{queue}}"),
                    (rate("ringback_log_lines_dropped_total", "service"), "lines {{service}}"),
                ),
                graph(
                    "Spans",
                    "Spans that the collector has accepted, and dropped ones by reason.",
                    PER_SECOND,
                    (rate("ringback_spans_exported_total", "service"), "exported {{service}}"),
                    (
                        rate("ringback_spans_dropped_total", "service", "reason"),
                        "{{reason}} {{service}}",
                    ),
                ),
            ),
        ),
    ),
)
