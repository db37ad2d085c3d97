"""The schemas of schedules, of the scheduler's operations and of its facts."""

import json
from datetime import UTC, datetime
from uuid import UUID

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from shared.contracts import schedule_requests as requests
from shared.contracts.schedule_changes import CancelCallback, RescheduleCallback
from shared.contracts.schedule_facts import ScheduleFact
from shared.contracts.schedules import ScheduleCallback, callback_id_of_message
from tests.contract.conftest import Golden

RECEIVED: tuple[type[BaseModel], ...] = (
    ScheduleCallback,
    CancelCallback,
    RescheduleCallback,
    requests.CreateCallback,
    requests.CreateCallbacks,
    requests.GetCallback,
    requests.ListCallbacks,
    requests.RetryCallbacks,
    requests.CountDue,
    requests.ListOccurrences,
)
SENT: tuple[type[BaseModel], ...] = (
    requests.CallbackCreated,
    requests.CallbacksCreated,
    requests.CallbackStatus,
    requests.CallbackPage,
    requests.CancelResponse,
    requests.CancelGroupResponse,
    requests.RescheduleResponse,
    requests.RetryResponse,
    requests.Pong,
    requests.DueCounts,
    requests.Occurrences,
    ScheduleFact,
)


def test_the_schemas_have_not_changed(golden: Golden) -> None:
    _, schema = models_json_schema(
        [(model, "validation") for model in RECEIVED] + [(model, "serialization") for model in SENT]
    )
    golden("schedule_schema", schema)


def test_the_json_of_a_fact_has_not_changed(golden: Golden) -> None:
    fact = ScheduleFact(
        type="schedule.retrying",
        fact_id="0b0c3f0e-5d0b-4a50-9f5c-3b1c3a7b6f10/2/retrying",
        at=datetime(2026, 11, 20, 15, tzinfo=UTC),
        schedule_id=UUID("0b0c3f0e-5d0b-4a50-9f5c-3b1c3a7b6f10"),
        client_id="shop",
        group_key="user-7",
        event_key=None,
        occurrence=3,
        attempts=6,
        error="the receiver responded with 500",
        next_at=datetime(2026, 11, 20, 15, 1, tzinfo=UTC),
    )
    golden("schedule_fact", json.loads(fact.model_dump_json()))


def test_the_callback_id_of_a_message_never_changes() -> None:
    """Otherwise a message redelivered after an upgrade would create a second callback."""
    assert callback_id_of_message("", "m-1") == UUID("9262570f-03d0-52ce-8db5-e65a0250c1e1")
    assert callback_id_of_message("shop", "m-1") != callback_id_of_message("", "m-1")
