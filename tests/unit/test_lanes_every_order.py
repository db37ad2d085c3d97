"""Lanes and circuit breakers in every order of events, against a model of the expected state."""

import asyncio
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shared.errors import DeferredError, InfrastructureError
from shared.resilience import lanes as module
from shared.resilience.lanes import INITIAL_LIMIT, MAX_OPEN_TIME, Breaker
from tests.fakes.lanes import LanesUnderTest, run_ready_tasks

A, B = "https://a.example:443", "https://b.example:443"


@dataclass
class Model:
    """The expected state of one target."""

    in_flight: list[bool] = field(default_factory=list)  # whether each is a probe
    queued: list["asyncio.Task[bool]"] = field(default_factory=list)
    limit: int = 0
    failures: int = 0
    last_failure: float = 0.0
    open_time: float = 0.0
    open_until: float = 0.0


urls = st.sampled_from([A, A, A, B])  # A is crowded


class EveryOrder(RuleBasedStateMachine):
    """Any order of entering, leaving, cancelling and time passing, against `Model`."""

    MAX_IN_FLIGHT, PREFETCH, MAX_FAILURES = 6, 24, 3

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.under_test = LanesUnderTest(
            max_in_flight=self.MAX_IN_FLIGHT,
            prefetch=self.PREFETCH,
            max_failures=self.MAX_FAILURES,
        )
        self.models: dict[str, Model] = {}
        self.drained = False

    def model(self, url: str) -> Model:
        return self.models.setdefault(url, Model(limit=min(INITIAL_LIMIT, self.MAX_IN_FLIGHT)))

    def run_ready(self) -> None:
        self.loop.run_until_complete(run_ready_tasks())

    def enter(self, url: str) -> "asyncio.Task[bool]":
        task = self.loop.create_task(self.under_test.lanes.enter(self.under_test.lanes.lane(url)))
        self.run_ready()
        return task

    @rule(url=urls, count=st.sampled_from([1, 3, 10]))
    def several_enter(self, url: str, count: int) -> None:
        for _ in range(count):
            self.one_enters(url)

    def one_enters(self, url: str) -> None:
        model, now = self.model(url), self.under_test.time.now
        task = self.enter(url)
        if self.drained:
            assert isinstance(task.exception(), InfrastructureError)
        elif model.open_time:
            if now < model.open_until or any(model.in_flight):
                error = task.exception()
                assert isinstance(error, DeferredError)
                assert error.delay >= max(model.open_until - now, 1)
            else:
                assert task.result() is True
                model.in_flight.append(True)
        elif not task.done():
            assert len(model.in_flight) >= model.limit
            model.queued.append(task)
        elif isinstance(task.exception(), DeferredError):
            expected = "too many unproven targets"
            if len(model.in_flight) >= model.limit:
                expected = (
                    "lane stalled" if self.under_test.lanes.lane(url).stalled else "lane full"
                )
            assert str(task.exception()) == expected
        else:
            assert task.result() is False
            assert len(model.in_flight) < model.limit
            assert not model.queued
            model.in_flight.append(False)

    @rule(
        url=urls,
        nth=st.integers(0, 9),
        alive=st.sampled_from([True, True, False, False, False, None]),
        duration=st.sampled_from([0.001, 0.1, 0.1]),
        cancelled=st.none() | st.integers(0, 2),
    )
    def one_leaves(
        self, url: str, nth: int, *, alive: bool | None, duration: float, cancelled: int | None
    ) -> None:
        """Release a place; perhaps a queued message is cancelled at the same time."""
        model, now = self.model(url), self.under_test.time.now
        if not model.in_flight:
            return
        probe = model.in_flight.pop(nth % len(model.in_flight))
        changes_before = len(self.under_test.changes)
        self.under_test.lanes.leave(
            self.under_test.lanes.lane(url), probe=probe, alive=alive, duration=duration
        )
        if cancelled is not None and model.queued:
            model.queued[cancelled % len(model.queued)].cancel()
        self.run_ready()
        expected = None
        if alive:
            model.failures = 0
            model.limit = min(model.limit + 1, self.MAX_IN_FLIGHT)
            if model.open_time:
                model.open_time, expected = 0.0, Breaker.CLOSED
        elif alive is False:
            far_apart = now - model.last_failure > module.FAILURE_LIFETIME
            model.failures = 1 if far_apart else model.failures + 1
            model.last_failure = now
            model.limit = max(model.limit // 2, min(INITIAL_LIMIT, self.MAX_IN_FLIGHT))
            if probe or (not model.open_time and model.failures >= self.MAX_FAILURES):
                model.open_time = min(
                    model.open_time * 2 or module.INITIAL_OPEN_TIME, MAX_OPEN_TIME
                )
                model.open_until, expected = now + model.open_time, Breaker.OPEN
        changes = [(url, expected, model.open_time)] if expected else []
        assert self.under_test.changes[changes_before:] == changes
        self.check_admitted(model)

    def check_admitted(self, model: Model) -> None:
        live = [task for task in model.queued if not (task.done() and task.cancelled())]
        admitted = [task for task in live if task.done() and task.exception() is None]
        deferred = [task for task in live if task.done() and task.exception() is not None]
        assert live[: len(admitted)] == admitted  # first in, first out
        assert all(task.result() is False for task in admitted)
        if deferred:
            assert deferred == live
            assert all(isinstance(task.exception(), DeferredError) for task in deferred)
            assert model.open_time
        model.in_flight += [False] * len(admitted)
        model.queued = [task for task in live if not task.done()]

    @rule(url=urls, nth=st.integers(0, 9))
    def a_queued_message_is_cancelled(self, url: str, nth: int) -> None:
        model = self.model(url)
        if model.queued:
            model.queued.pop(nth % len(model.queued)).cancel()
            self.run_ready()
            self.check_admitted(model)

    @rule(seconds=st.sampled_from([0.5, 2.0, 10.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.under_test.time.now += seconds

    @rule()
    def stalled_queues_are_deferred(self) -> None:
        self.under_test.lanes.defer_stalled()
        self.run_ready()
        for model in self.models.values():
            deferred = [task for task in model.queued if task.done()]
            assert deferred in ([], model.queued)
            assert all(isinstance(task.exception(), DeferredError) for task in deferred)
            if deferred:
                model.queued = []

    @precondition(lambda self: not self.drained and len(self.models) > 1)
    @rule(drains=st.sampled_from([False] * 9 + [True]))
    def the_worker_drains(self, *, drains: bool) -> None:
        if not drains:
            return
        self.drained = True
        self.under_test.lanes.drain()
        self.run_ready()
        for model in self.models.values():
            assert all(isinstance(task.exception(), InfrastructureError) for task in model.queued)
            model.queued = []

    @invariant()
    def places_match_the_model(self) -> None:
        for url, model in self.models.items():
            lane = self.under_test.lanes.lane(url)
            assert lane.in_flight == len(model.in_flight) <= self.MAX_IN_FLIGHT
            assert lane.limit == model.limit
            assert sum(model.in_flight) <= 1  # probes
            for task in model.queued:
                assert not task.done()
            if model.queued:  # none is queued while a place is free
                assert len(model.in_flight) >= model.limit
                assert not model.open_time

    def teardown(self) -> None:
        try:
            self.check_all_places_are_free()
        finally:
            self.loop.close()

    def check_all_places_are_free(self) -> None:
        """Release all places, and check each lane and their sum."""
        for url, model in self.models.items():
            for task in model.queued:
                task.cancel()
            self.run_ready()
            for probe in model.in_flight:
                self.under_test.lanes.leave(self.under_test.lanes.lane(url), probe=probe)
            assert self.under_test.lanes.lane(url).idle
        if not self.drained:
            fresh = [
                self.enter(f"https://{n}.example:443") for n in range(self.PREFETCH * 3 // 4 + 1)
            ]
            assert [task.exception() is None for task in fresh] == [True] * len(fresh[1:]) + [False]


EveryOrder.TestCase.settings = settings(max_examples=30, stateful_step_count=30)
TestEveryOrder = EveryOrder.TestCase
