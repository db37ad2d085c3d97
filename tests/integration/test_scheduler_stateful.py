"""Create, move, cancel, fire, fail, retry, in any order, against a model of a few lines."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.fakes.scheduling import (
    URL,
    Scheduler,
    attempt_failed,
    delivered,
    given_back,
    schedulers,
)

FLYING = "flying"
MOST = 3


@dataclass
class Model:
    """What we believe of an event. `state`: waiting, flying, or its end."""

    state: str = "waiting"
    tried: bool = False  # a try of the present promise has failed
    doomed: bool = False  # cancelled in flight
    dispatch: int = 0
    promise: int = 1  # the first dispatch that counts

    @property
    def status(self) -> str:
        if self.state in ("waiting", FLYING) and self.tried:
            return "retrying"
        return {"waiting": "scheduled", FLYING: "dispatched"}.get(self.state, self.state)


class Life(RuleBasedStateMachine):
    """The scheduler and the model, side by side."""

    events = Bundle("events")
    database_url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.models: dict[UUID, Model] = {}
        self.keys: dict[str, UUID] = {}
        (self.it,) = self.do(self.stack.enter_async_context(schedulers(self.database_url)))
        self.scheduler: Scheduler = self.it

    def do(self, work: Any) -> Any:
        async def wait() -> Any:
            return await work

        return self.runner.run(wait())

    def teardown(self) -> None:
        self.do(self.stack.aclose())
        self.runner.close()

    # Few events, so that much happens to each.
    @precondition(lambda self: len(self.models) < MOST)
    @rule(target=events, key=st.sampled_from(["a", "b", None]))
    def create(self, key: str | None) -> Any:
        asked = {"url": URL, "delay": 3600, "event_key": key, "retry_params": {"base_delay": 900}}
        answer = self.do(self.it.ask("CreateCallback", callback=asked))
        if key is not None and key in self.keys:
            assert answer["code"] == "conflict"
            return multiple()
        event = UUID(answer["id"])
        self.models[event] = Model()
        if key is not None:
            self.keys[key] = event
        return event

    @rule(event=events)
    def its_moment_comes(self, event: UUID) -> None:
        """It is due, its next retry is, or its lease is over."""
        model = self.models[event]
        self.do(self.it.come(event))
        fired = [body["id"] for body in self.do(self.it.fire())]
        if model.state == FLYING and model.doomed:
            model.state = "cancelled"
            assert fired == []
        elif model.state in ("waiting", FLYING):
            model.state = FLYING
            model.dispatch += 1
            assert fired == [str(event)]
        else:
            assert fired == []

    @rule(event=events, late=st.integers(0, 2))
    def is_delivered(self, event: UUID, late: int) -> None:
        model = self.models[event]
        if model.dispatch - late < 1:
            return
        dispatch = model.dispatch - late
        self.do(self.it.hear(delivered(event, dispatch)))
        if model.state in ("waiting", FLYING) and dispatch >= model.promise:
            model.state = "notified"

    @rule(event=events, late=st.integers(0, 1), final=st.booleans())
    def is_given_back(self, event: UUID, late: int, final: bool) -> None:  # noqa: FBT001
        model = self.models[event]
        if model.dispatch - late < 1:
            return
        self.do(self.it.hear(given_back(event, model.dispatch - late, final=final)))
        if late or model.state != FLYING:
            return
        model.tried = True
        model.state = "cancelled" if model.doomed else "failed" if final else "waiting"
        model.doomed = False

    @rule(event=events, late=st.integers(0, 1))
    def a_try_fails(self, event: UUID, late: int) -> None:
        model = self.models[event]
        if model.dispatch - late < 1:
            return
        self.do(self.it.hear(attempt_failed(event, model.dispatch - late)))
        if not late and model.state == FLYING:
            model.tried = True

    @rule(event=events)
    def cancel(self, event: UUID) -> None:
        model = self.models[event]
        result = self.do(self.it.ask("CancelCallbacks", id=str(event)))["result"]
        if model.state == "waiting":
            model.state = "cancelled"
        elif model.state == FLYING:
            model.doomed = True
        known = {"cancelled": "cancelled", FLYING: "in_flight"}
        assert result == known.get(model.state, f"already_{model.state}")

    @rule(event=events)
    def move(self, event: UUID) -> None:
        model = self.models[event]
        result = self.do(self.it.ask("RescheduleCallback", id=str(event), delay=7200))["result"]
        known = {"waiting": "rescheduled", FLYING: "in_flight"}
        assert result == known.get(model.state, f"already_{model.state}")
        if model.state == "waiting":
            model.tried = False
            model.promise = model.dispatch + 1

    @rule()
    def retry_all_that_failed(self) -> None:
        answer = self.do(self.it.ask("RetryCallbacks"))
        failed = [event for event, model in self.models.items() if model.state == "failed"]
        assert sorted(answer["ids"]) == sorted(map(str, failed))
        fired = {body["id"] for body in self.do(self.it.fire())}
        assert fired == set(map(str, failed))
        for event in failed:
            before = self.models[event].dispatch
            self.models[event] = Model(FLYING, dispatch=before + 1, promise=before + 1)

    @rule(key=st.sampled_from(["a", "b"]))
    def ask_by_key(self, key: str) -> None:
        answer = self.do(self.it.ask("GetCallback", event_key=key))
        assert answer.get("id") == (str(self.keys[key]) if key in self.keys else None)

    @invariant()
    def both_agree(self) -> None:
        items = self.do(self.it.ask("ListCallbacks", limit=1000))["items"]
        assert {item["id"]: item["status"] for item in items} == {
            str(event): model.status for event, model in self.models.items()
        }


@pytest.mark.timeout(170)
def test_s1_to_s11_the_scheduler_does_what_a_simple_model_says(database_url: str) -> None:
    class Here(Life):
        pass

    Here.database_url = database_url
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
