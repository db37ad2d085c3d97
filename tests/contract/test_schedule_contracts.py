"""The forms of schedules, of what can be asked about them, and of their facts."""

import json
from datetime import UTC, datetime
from uuid import UUID

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from shared.contracts import schedule_requests as requests
from shared.contracts.schedule_facts import ScheduleFact
from shared.contracts.schedules import (
    CancelCallback,
    RescheduleCallback,
    ScheduleCallback,
    callback_id_of_message,
)
from tests.contract.conftest import Golden

ASKED: tuple[type[BaseModel], ...] = (
    ScheduleCallback,
    CancelCallback,
    RescheduleCallback,
    requests.CreateCallback,
    requests.CreateCallbacks,
    requests.GetCallback,
    requests.ListCallbacks,
    requests.RetryCallbacks,
)
ANSWERED: tuple[type[BaseModel], ...] = (
    requests.CallbackCreated,
    requests.CallbacksCreated,
    requests.CallbackStatus,
    requests.CallbackPage,
    requests.CancelResponse,
    requests.CancelGroupResponse,
    requests.RescheduleResponse,
    requests.RetryResponse,
    requests.Pong,
    ScheduleFact,
)


def test_the_forms_are_what_they_were(golden: Golden) -> None:
    _, schema = models_json_schema(
        [(model, "validation") for model in ASKED]
        + [(model, "serialization") for model in ANSWERED]
    )
    golden("schedule_schema", schema)


def test_a_fact_is_written_as_it_always_was(golden: Golden) -> None:
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
        error="the receiver answered 500",
        next_at=datetime(2026, 11, 20, 15, 1, tzinfo=UTC),
    )
    golden("schedule_fact", json.loads(fact.model_dump_json()))


def test_the_id_of_a_message_s_event_never_changes() -> None:
    """Else a message that is given out again after an upgrade would be a second event."""
    assert callback_id_of_message("", "m-1") == UUID("9262570f-03d0-52ce-8db5-e65a0250c1e1")
    assert callback_id_of_message("shop", "m-1") != callback_id_of_message("", "m-1")
