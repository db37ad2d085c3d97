"""Create, move, cancel, fire, fail, retry, in any order, against a model of a few lines."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fakes.scheduling import (
    URL,
    attempt_failed,
    delivered,
    dispatch_failed,
    schedulers,
)

FLYING = "flying"
MOST = 2
FACTS = ["delivered", "a try failed", "given back", "given back", "refused for good"]


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


class Life:
    """The scheduler and the model, side by side."""

    def __init__(self, database_url: str) -> None:
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.models: dict[UUID, Model] = {}
        self.keys: dict[str, UUID] = {}
        (self.it,) = self.do(self.stack.enter_async_context(schedulers(database_url)))

    def do(self, work: Any) -> Any:
        async def wait() -> Any:
            return await work

        return self.runner.run(wait())

    def end(self) -> None:
        self.do(self.stack.aclose())
        self.runner.close()

    def step(self, action: str, which: int, late: int) -> None:
        """Do one thing to one event, and compare."""
        if action.startswith("create"):
            if len(self.models) < MOST:
                self.create(action.removeprefix("create").strip() or None)
        elif action == "retry":
            self.retry_all_that_failed()
        elif self.models:
            event = list(self.models)[which % len(self.models)]
            if action in FACTS:
                self.a_fact_comes(event, late, action)
            else:
                {"cancel": self.cancel, "move": self.move, "come": self.its_moment_comes}[action](
                    event
                )
        self.both_agree()

    def create(self, key: str | None) -> None:
        asked = {"url": URL, "delay": 3600, "event_key": key, "retry_params": {"base_delay": 900}}
        answer = self.do(self.it.request("CreateCallback", callback=asked))
        if key is not None and key in self.keys:
            assert answer["code"] == "conflict"
            return
        event = UUID(answer["id"])
        self.models[event] = Model()
        if key is not None:
            self.keys[key] = event

    def its_moment_comes(self, event: UUID) -> None:
        """It is due, its next retry is, or its lease is over."""
        model = self.models[event]
        self.do(self.it.make_due(event))
        fired = [body["id"] for body in self.do(self.it.dispatch())]
        if model.state == FLYING and model.doomed:
            model.state = "cancelled"
            assert fired == []
        elif model.state in ("waiting", FLYING):
            model.state = FLYING
            model.dispatch += 1
            assert fired == [str(event)]
        else:
            assert fired == []

    def a_fact_comes(self, event: UUID, late: int, what: str) -> None:
        model = self.models[event]
        dispatch = model.dispatch - late
        if dispatch < 1:
            return
        flying = model.state == FLYING and not late
        if what == "delivered":
            self.do(self.it.settle(delivered(event, dispatch)))
            if model.state in ("waiting", FLYING) and dispatch >= model.promise:
                model.state = "notified"
        elif what == "a try failed":
            self.do(self.it.settle(attempt_failed(event, dispatch)))
            model.tried = model.tried or flying
        else:
            final = what == "refused for good"
            self.do(self.it.settle(dispatch_failed(event, dispatch, final=final)))
            if flying:
                model.tried = True
                model.state = "cancelled" if model.doomed else "failed" if final else "waiting"
                model.doomed = False

    def cancel(self, event: UUID) -> None:
        model = self.models[event]
        result = self.do(self.it.request("CancelCallbacks", id=str(event)))["result"]
        if model.state == "waiting":
            model.state = "cancelled"
        elif model.state == FLYING:
            model.doomed = True
        known = {"cancelled": "cancelled", FLYING: "in_flight"}
        assert result == known.get(model.state, f"already_{model.state}")

    def move(self, event: UUID) -> None:
        model = self.models[event]
        result = self.do(self.it.request("RescheduleCallback", id=str(event), delay=7200))["result"]
        known = {"waiting": "rescheduled", FLYING: "in_flight"}
        assert result == known.get(model.state, f"already_{model.state}")
        if model.state == "waiting":
            model.tried = False
            model.promise = model.dispatch + 1

    def retry_all_that_failed(self) -> None:
        answer = self.do(self.it.request("RetryCallbacks"))
        failed = [event for event, model in self.models.items() if model.state == "failed"]
        assert sorted(answer["ids"]) == sorted(map(str, failed))
        fired = {body["id"] for body in self.do(self.it.dispatch())}
        assert fired == set(map(str, failed))
        for event in failed:
            before = self.models[event].dispatch
            self.models[event] = Model(FLYING, dispatch=before + 1, promise=before + 1)

    def both_agree(self) -> None:
        items = self.do(self.it.request("ListCallbacks", limit=1000))["items"]
        assert {item["id"]: item["status"] for item in items} == {
            str(event): model.status for event, model in self.models.items()
        }
        for key, event in self.keys.items():
            assert self.do(self.it.request("GetCallback", event_key=key))["id"] == str(event)


STEPS = st.tuples(
    st.sampled_from(["create", "create a", "retry", "cancel", "move", "come", "come", *FACTS]),
    st.integers(0, MOST - 1),
    st.sampled_from([0, 0, 1]),
)


@pytest.mark.timeout(170)
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # to shrink takes minutes here; the steps are shown as they are
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(STEPS, min_size=30, max_size=60))
def test_s1_to_s11_the_scheduler_does_what_a_simple_model_says(
    database_url: str, steps: list[tuple[str, int, int]]
) -> None:
    life = Life(database_url)
    try:
        for step in steps:
            life.step(*step)
    finally:
        life.end()
