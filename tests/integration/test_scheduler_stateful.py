"""Random sequences of steps, compared with a model of a few lines."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fakes.scheduling import (
    URL,
    attempt_failed,
    delivered,
    dispatch_failed,
    schedulers,
)

IN_FLIGHT = "in flight"
MAX_CALLBACKS = 2
FACTS = ["delivered", "attempt failed", "dispatch failed", "dispatch failed", "refused for good"]


@dataclass
class Model:
    """The expected state of a callback: waiting, in flight, or a final status."""

    state: str = "waiting"
    attempted: bool = False  # an attempt has failed since the callback was last due
    cancel_requested: bool = False
    dispatch: int = 0
    first_dispatch: int = 1

    @property
    def status(self) -> str:
        if self.state in ("waiting", IN_FLIGHT) and self.attempted:
            return "retrying"
        return {"waiting": "scheduled", IN_FLIGHT: "dispatched"}.get(self.state, self.state)


class Comparison:
    """The scheduler and the models of its callbacks."""

    def __init__(self, database_url: str) -> None:
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.models: dict[UUID, Model] = {}
        self.keys: dict[str, UUID] = {}
        (self.scheduler,) = self.run(self.stack.enter_async_context(schedulers(database_url)))

    def run(self, awaitable: Any) -> Any:
        async def wait() -> Any:
            return await awaitable

        return self.runner.run(wait())

    def request(self, operation: str, **body: Any) -> Any:
        return self.run(self.scheduler.request(operation, **body))

    def close(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()

    def step(self, action: str, index: int, dispatches_ago: int) -> None:
        """Apply one action to one callback, and compare all."""
        if action.startswith("create"):
            if len(self.models) < MAX_CALLBACKS:
                self.create(action.removeprefix("create").strip() or None)
        elif action == "retry":
            self.retry_failed()
        elif self.models:
            callback = list(self.models)[index % len(self.models)]
            if action in FACTS:
                self.settle(callback, dispatches_ago, action)
            else:
                {"cancel": self.cancel, "reschedule": self.reschedule, "due": self.make_due}[
                    action
                ](callback)
        self.compare()

    def create(self, key: str | None) -> None:
        command = {"url": URL, "delay": 3600, "event_key": key, "retry_params": {"base_delay": 900}}
        created = self.request("CreateCallback", callback=command)
        if key is not None and key in self.keys:
            assert created["code"] == "conflict"
            return
        callback = UUID(created["id"])
        self.models[callback] = Model()
        if key is not None:
            self.keys[key] = callback

    def make_due(self, callback: UUID) -> None:
        """Let its due time come, its next retry, or the end of its lease."""
        model = self.models[callback]
        self.run(self.scheduler.make_due(callback))
        dispatched = [body["id"] for body in self.run(self.scheduler.dispatch())]
        if model.state == IN_FLIGHT and model.cancel_requested:
            model.state = "cancelled"
            assert dispatched == []
        elif model.state in ("waiting", IN_FLIGHT):
            model.state = IN_FLIGHT
            model.dispatch += 1
            assert dispatched == [str(callback)]
        else:
            assert dispatched == []

    def settle(self, callback: UUID, dispatches_ago: int, kind: str) -> None:
        model = self.models[callback]
        dispatch = model.dispatch - dispatches_ago
        if dispatch < 1:
            return
        current = model.state == IN_FLIGHT and not dispatches_ago
        if kind == "delivered":
            self.run(self.scheduler.settle(delivered(callback, dispatch)))
            undelivered = model.state in ("waiting", IN_FLIGHT, "failed")
            if undelivered and dispatch >= model.first_dispatch:
                model.state = "notified"
        elif kind == "attempt failed":
            self.run(self.scheduler.settle(attempt_failed(callback, dispatch)))
            model.attempted = model.attempted or current
        else:
            final = kind == "refused for good"
            self.run(self.scheduler.settle(dispatch_failed(callback, dispatch, final=final)))
            if current:
                model.attempted = True
                model.state = (
                    "cancelled" if model.cancel_requested else "failed" if final else "waiting"
                )
                model.cancel_requested = False

    def cancel(self, callback: UUID) -> None:
        model = self.models[callback]
        result = self.request("CancelCallbacks", id=str(callback))["result"]
        if model.state == "waiting":
            model.state = "cancelled"
        elif model.state == IN_FLIGHT:
            model.cancel_requested = True
        expected = {"cancelled": "cancelled", IN_FLIGHT: "in_flight"}
        assert result == expected.get(model.state, f"already_{model.state}")

    def reschedule(self, callback: UUID) -> None:
        model = self.models[callback]
        result = self.request("RescheduleCallback", id=str(callback), delay=7200)["result"]
        expected = {"waiting": "rescheduled", IN_FLIGHT: "in_flight"}
        assert result == expected.get(model.state, f"already_{model.state}")
        if model.state == "waiting":
            model.attempted = False
            model.first_dispatch = model.dispatch + 1

    def retry_failed(self) -> None:
        response = self.request("RetryCallbacks", all=True)
        failed = [callback for callback, model in self.models.items() if model.state == "failed"]
        assert sorted(response["ids"]) == sorted(map(str, failed))
        dispatched = {body["id"] for body in self.run(self.scheduler.dispatch())}
        assert dispatched == set(map(str, failed))
        for callback in failed:
            dispatch = self.models[callback].dispatch + 1
            self.models[callback] = Model(IN_FLIGHT, dispatch=dispatch, first_dispatch=dispatch)

    def compare(self) -> None:
        items = self.request("ListCallbacks", limit=1000)["items"]
        assert {item["id"]: item["status"] for item in items} == {
            str(callback): model.status for callback, model in self.models.items()
        }
        for key, callback in self.keys.items():
            assert self.request("GetCallback", event_key=key)["id"] == str(callback)


STEPS = st.tuples(
    st.sampled_from(["create", "create a", "retry", "cancel", "reschedule", "due", "due", *FACTS]),
    st.integers(0, MAX_CALLBACKS - 1),
    st.sampled_from([0, 0, 1]),
)


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # shrinking would take minutes
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(STEPS, min_size=30, max_size=60))
def test_s1_to_s11_the_scheduler_agrees_with_a_simple_model(
    database_url: str, steps: list[tuple[str, int, int]]
) -> None:
    comparison = Comparison(database_url)
    try:
        for step in steps:
            comparison.step(*step)
    finally:
        comparison.close()
