"""The facts that the journal records, and the schemas of its operations."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from services.gateway.api.asyncapi import RPC_OPERATIONS
from shared.contracts.endpoint_facts import EndpointDisabled
from shared.contracts.journal_facts import (
    JOURNAL_FACT_TYPES,
    BreakerClosed,
    BreakerOpened,
    CallbackReplayed,
    JournalFacts,
    LaneFull,
    LetterDead,
    LetterDiscarded,
    LetterRedriven,
)
from shared.contracts.schedule_facts import (
    ScheduleCreated,
    ScheduleDispatched,
    ScheduleFact,
    ScheduleRescheduled,
)
from shared.topology import JOURNAL_REQUESTS
from tests.contract.conftest import Golden
from tests.contract.test_contracts import FACTS as CALLBACK_FACTS
from tests.contract.test_message_contracts import FACTS as MESSAGE_FACTS

AT = datetime(2026, 11, 20, 15, 0, 0, 123_000, tzinfo=UTC)
ID = UUID("0b0c3f0e-5d0b-4a50-9f5c-3b1c3a7b6f10")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
JOURNAL_FACTS = (
    ScheduleCreated(
        fact_id=f"{ID}/created",
        at=AT,
        schedule_id=ID,
        client_id="shop",
        group_key="user-7",
        event_key="reminder",
        trace_id=TRACE,
        run_at=AT,
        target="https://example.com:443",
        recurs=True,
    ),
    ScheduleRescheduled(fact_id="f-1", at=AT, schedule_id=ID, client_id=None, run_at=AT),
    ScheduleDispatched(
        fact_id=f"{ID}/2/dispatched",
        at=AT,
        schedule_id=ID,
        client_id=None,
        callback_id=f"{ID}.3",
        dispatch=2,
        lag=0.0125,
    ),
    LetterDead(
        fact_id="f-2",
        at=AT,
        queue="callbacks",
        letter_id="m-1",
        logical_id="id-1",
        reason="the receiver responded with 410: gone for good",
        target="https://example.com:443",
        client_id="shop",
        trace_id=TRACE,
    ),
    LetterRedriven(fact_id="f-3", at=AT, queue="callbacks", letter_id="m-1", actor="Omar"),
    LetterDiscarded(fact_id="f-4", at=AT, queue="callbacks", letter_id="m-2", job="j-1"),
    CallbackReplayed(
        fact_id="f-5",
        at=AT,
        callback_id="id-1",
        client_id="shop",
        target="https://example.com:443",
        actor="shop",
        replay="r-1",
    ),
    BreakerOpened(
        fact_id="f-6", at=AT, target="https://example.com:443", process="a/1", open_seconds=5.0
    ),
    BreakerClosed(fact_id="f-7", at=AT, target="https://example.com:443", process="a/1"),
    LaneFull(
        fact_id="f-10",
        at=AT,
        target="https://example.com:443",
        client_id="shop",
        process="a/1",
        reason="lane full",
        in_flight=4,
        limit=4,
    ),
)
OTHERS = (
    ScheduleFact(
        type="schedule.notified",
        fact_id="f-8",
        at=AT,
        schedule_id=ID,
        client_id=None,
        group_key=None,
        event_key=None,
        occurrence=None,
        attempts=1,
        error=None,
        next_at=None,
    ),
    EndpointDisabled(fact_id="f-9", at=AT, endpoint_id=ID, client_id="shop", failing_since=AT),
)


def test_n6_the_json_of_the_journals_facts_is_unchanged(golden: Golden) -> None:
    batch = JournalFacts(facts=list(JOURNAL_FACTS)).model_dump_json()
    golden("journal_facts", json.loads(batch))
    assert JournalFacts.model_validate_json(batch).facts == list(JOURNAL_FACTS)


def test_n6_the_journal_reads_every_fact() -> None:
    every: tuple[Any, ...] = (*CALLBACK_FACTS, *MESSAGE_FACTS, *JOURNAL_FACTS, *OTHERS)
    batch = json.dumps({"facts": [fact.model_dump(mode="json") for fact in every]})
    assert JournalFacts.model_validate_json(batch).facts == list(every)
    kinds = {"schedule.failed", "schedule.cancelled", "schedule.retrying"}
    assert {fact.type for fact in every} | kinds == JOURNAL_FACT_TYPES


@pytest.mark.parametrize("fact", JOURNAL_FACTS, ids=lambda fact: fact.type)
def test_n12_facts_of_a_newer_version_may_have_more_fields(fact: BaseModel) -> None:
    written = json.loads(fact.model_dump_json()) | {"later": 1}
    assert JournalFacts.model_validate({"facts": [written]}).facts == [fact]


def test_n6_the_schemas_of_the_journals_operations_are_unchanged(golden: Golden) -> None:
    operations = [each for each in RPC_OPERATIONS if each.queue == JOURNAL_REQUESTS]
    received = dict.fromkeys(each.request for each in operations)
    sent = dict.fromkeys(model for each in operations for model in each.responses)
    _, schema = models_json_schema(
        [(model, "validation") for model in received] + [(model, "serialization") for model in sent]
    )
    golden("journal_schema", schema)
