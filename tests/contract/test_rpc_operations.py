"""Every RPC operation that a contract declares has a handler in the service that owns it."""

from collections.abc import Iterable
from typing import Any
from unittest.mock import Mock

import pytest

from services.delivery import requests as delivery
from services.journal.attempts.requests import AttemptRequests
from services.journal.audit.requests import AuditRequests
from services.journal.dead.requests import DeadRequests
from services.journal.jobs.requests import JobRequests
from services.journal.overview.requests import OverviewRequests
from services.journal.pauses.requests import PauseRequests
from services.journal.replays.bulk_requests import BulkReplayRequests
from services.journal.replays.requests import ReplayRequests
from services.journal.targets.requests import TargetRequests
from services.mailings import requests as mailings
from services.mailings.campaigns.requests import CampaignRequests
from services.mailings.clients.requests import ClientRequests
from services.mailings.rendering.requests import TemplateRequests
from services.mailings.reports.requests import ReportRequests
from services.mailings.statistics.requests import StatisticsRequests
from services.scheduler import requests as scheduler
from services.subscriptions.deliveries.requests import RegistrationRequests
from services.subscriptions.endpoints.message_requests import EndpointMessageRequests
from services.subscriptions.endpoints.requests import EndpointRequests
from services.subscriptions.messenger.requests import MessengerRequests
from shared.contracts.client_requests import CLIENT_OPERATIONS
from shared.contracts.delivery_requests import DELIVERY_OPERATIONS
from shared.contracts.endpoint_requests import ENDPOINT_MESSAGE_OPERATIONS, ENDPOINT_OPERATIONS
from shared.contracts.journal_dead import DEAD_OPERATIONS, JOB_OPERATIONS
from shared.contracts.journal_figures import OVERVIEW_OPERATIONS, TARGET_OPERATIONS
from shared.contracts.journal_reads import ATTEMPT_OPERATIONS, AUDIT_OPERATIONS
from shared.contracts.journal_replays import (
    BULK_REPLAY_OPERATIONS,
    PAUSE_OPERATIONS,
    REPLAY_OPERATIONS,
)
from shared.contracts.mailing_requests import CAMPAIGN_OPERATIONS
from shared.contracts.mailing_statistics import REPORT_OPERATIONS, STATISTICS_OPERATIONS
from shared.contracts.polls import POLL_OPERATIONS
from shared.contracts.posting_requests import MAILINGS_OPERATIONS
from shared.contracts.registrations import REGISTRATION_OPERATIONS
from shared.contracts.requests import RpcOperation
from shared.contracts.schedule_requests import SCHEDULER_OPERATIONS
from shared.contracts.template_requests import TEMPLATE_OPERATIONS
from shared.contracts.users import USER_OPERATIONS
from shared.topology import REQUEST_QUEUES


@pytest.mark.parametrize(
    ("operations", "handled"),
    [
        (
            SCHEDULER_OPERATIONS,
            scheduler.Requests(Mock(), Mock(), Mock(), fault=Mock(), anonymous=True),
        ),
        (MAILINGS_OPERATIONS, mailings.Requests(Mock(), Mock(), Mock(), Mock(), Mock())),
        (CLIENT_OPERATIONS, ClientRequests(Mock())),
        (TEMPLATE_OPERATIONS, TemplateRequests(Mock(), "Ringback")),
        (STATISTICS_OPERATIONS, StatisticsRequests(Mock())),
        (REPORT_OPERATIONS, ReportRequests(Mock())),
        (
            CAMPAIGN_OPERATIONS,
            CampaignRequests(Mock(), Mock(), Mock(), Mock(), Mock(), clock=Mock(), started=Mock()),
        ),
        (DELIVERY_OPERATIONS, delivery.Requests(Mock())),
        (
            (*USER_OPERATIONS, *POLL_OPERATIONS),
            MessengerRequests(Mock(), Mock(), Mock(), Mock(), token_lifetime=Mock()),
        ),
        (REGISTRATION_OPERATIONS, RegistrationRequests(Mock(), Mock())),
        (
            ENDPOINT_OPERATIONS,
            EndpointRequests(Mock(), Mock(), Mock(), changed=Mock(), replay_rate=1.0),
        ),
        (
            ENDPOINT_MESSAGE_OPERATIONS,
            EndpointMessageRequests(Mock(), Mock(), Mock(), added=Mock()),
        ),
        (ATTEMPT_OPERATIONS, AttemptRequests(Mock(), Mock())),
        (TARGET_OPERATIONS, TargetRequests(Mock(), Mock(), Mock())),
        (
            OVERVIEW_OPERATIONS,
            OverviewRequests(Mock(), Mock(), Mock(), Mock(), Mock(), monotonic=Mock(), now=Mock()),
        ),
        (AUDIT_OPERATIONS, AuditRequests(Mock(), Mock())),
        (DEAD_OPERATIONS, DeadRequests(Mock(), Mock(), Mock(), Mock(), Mock(), wake=Mock())),
        (JOB_OPERATIONS, JobRequests(Mock(), Mock())),
        (REPLAY_OPERATIONS, ReplayRequests(Mock(), Mock(), Mock(), None, Mock())),
        (
            BULK_REPLAY_OPERATIONS,
            BulkReplayRequests(Mock(), Mock(), Mock(), None, wake=Mock()),
        ),
        (PAUSE_OPERATIONS, PauseRequests(Mock(), Mock(), Mock())),
    ],
    ids=[
        *("scheduler", "mailings", "clients", "templates", "statistics", "reports", "campaigns"),
        *("delivery", "messenger", "registrations", "endpoints", "endpoint messages"),
        *("attempts", "targets", "overview", "audit", "dead letters", "jobs", "replays"),
        *("bulk replays", "pauses"),
    ],
)
def test_every_operation_has_a_handler(
    operations: Iterable[RpcOperation[Any]], handled: Any
) -> None:
    assert handled.handlers().keys() == {operation.name for operation in operations}


def test_every_request_queue_has_operations() -> None:
    operations = (
        *SCHEDULER_OPERATIONS,
        *MAILINGS_OPERATIONS,
        *CLIENT_OPERATIONS,
        *STATISTICS_OPERATIONS,
        *REPORT_OPERATIONS,
        *CAMPAIGN_OPERATIONS,
        *TEMPLATE_OPERATIONS,
        *DELIVERY_OPERATIONS,
        *USER_OPERATIONS,
        *POLL_OPERATIONS,
        *REGISTRATION_OPERATIONS,
        *ENDPOINT_OPERATIONS,
        *ENDPOINT_MESSAGE_OPERATIONS,
        *ATTEMPT_OPERATIONS,
        *TARGET_OPERATIONS,
        *OVERVIEW_OPERATIONS,
        *AUDIT_OPERATIONS,
        *DEAD_OPERATIONS,
        *JOB_OPERATIONS,
        *REPLAY_OPERATIONS,
        *BULK_REPLAY_OPERATIONS,
        *PAUSE_OPERATIONS,
    )
    assert {operation.queue for operation in operations} == set(REQUEST_QUEUES)
