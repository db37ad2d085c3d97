"""Lanes and breakers in every order of events, against a model of what is known from outside."""

import asyncio
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shared.errors import DeferredError, InfrastructureError
from shared.resilience import lanes as module
from shared.resilience.lanes import INITIAL_LIMIT, MAX_OPEN_TIME, Breaker
from tests.fakes.lanes import World, settled

A, B = "https://a.example:443", "https://b.example:443"


@dataclass
class Model:
    """What is known of one target from outside."""

    holding: list[bool] = field(default_factory=list)  # each with whether it is the probe
    waiting: list["asyncio.Task[bool]"] = field(default_factory=list)
    limit: int = 0
    failures: int = 0
    last_failure: float = 0.0
    pause: float = 0.0
    open_until: float = 0.0


urls = st.sampled_from([A, A, A, B])  # one of them crowded


class EveryOrder(RuleBasedStateMachine):
    """Any order of entering, leaving, cancelling and time passing, against `Model`."""

    WIDEST, SLOTS, FAILURES = 6, 24, 3

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World(widest=self.WIDEST, slots=self.SLOTS, failures=self.FAILURES)
        self.models: dict[str, Model] = {}
        self.drained = False

    def model(self, url: str) -> Model:
        return self.models.setdefault(url, Model(limit=min(INITIAL_LIMIT, self.WIDEST)))

    def settle(self) -> None:
        self.loop.run_until_complete(settled())

    def enter(self, url: str) -> "asyncio.Task[bool]":
        task = self.loop.create_task(self.world.lanes.enter(self.world.lanes.lane(url)))
        self.settle()
        return task

    @rule(url=urls, many=st.sampled_from([1, 3, 10]))
    def some_enter(self, url: str, many: int) -> None:
        for _ in range(many):
            self.somebody_enters(url)

    def somebody_enters(self, url: str) -> None:
        model, now = self.model(url), self.world.time.now
        task = self.enter(url)
        if self.drained:
            assert isinstance(task.exception(), InfrastructureError)
        elif model.pause:
            if now < model.open_until or any(model.holding):
                refused = task.exception()
                assert isinstance(refused, DeferredError)
                assert refused.delay >= max(model.open_until - now, 1)
            else:
                assert task.result() is True
                model.holding.append(True)
        elif not task.done():
            assert len(model.holding) >= model.limit
            model.waiting.append(task)
        elif isinstance(task.exception(), DeferredError):
            expected = "too many targets that have not answered"
            if len(model.holding) >= model.limit:
                expected = "lane stalls" if self.world.lanes.lane(url).stalled else "lane full"
            assert str(task.exception()) == expected
        else:
            assert task.result() is False
            assert len(model.holding) < model.limit
            assert not model.waiting
            model.holding.append(False)

    @rule(
        url=urls,
        nth=st.integers(0, 9),
        alive=st.sampled_from([True, True, False, False, False, None]),
        duration=st.sampled_from([0.001, 0.1, 0.1]),
        cancelled=st.none() | st.integers(0, 2),
    )
    def somebody_leaves(
        self, url: str, nth: int, *, alive: bool | None, duration: float, cancelled: int | None
    ) -> None:
        """While, perhaps, somebody who waits is cancelled at the same moment."""
        model, now = self.model(url), self.world.time.now
        if not model.holding:
            return
        probe = model.holding.pop(nth % len(model.holding))
        told = len(self.world.told)
        self.world.lanes.leave(
            self.world.lanes.lane(url), probe=probe, alive=alive, duration=duration
        )
        if cancelled is not None and model.waiting:
            model.waiting[cancelled % len(model.waiting)].cancel()
        self.settle()
        expected = None
        if alive:
            model.failures = 0
            model.limit = min(model.limit + 1, self.WIDEST)
            if model.pause:
                model.pause, expected = 0.0, Breaker.CLOSED
        elif alive is False:
            far_apart = now - model.last_failure > module.IDLE_LIFETIME
            model.failures = 1 if far_apart else model.failures + 1
            model.last_failure = now
            model.limit = max(model.limit // 2, min(INITIAL_LIMIT, self.WIDEST))
            if probe or (not model.pause and model.failures >= self.FAILURES):
                model.pause = min(model.pause * 2 or module.INITIAL_OPEN_TIME, MAX_OPEN_TIME)
                model.open_until, expected = now + model.pause, Breaker.OPEN
        changes = [(url, expected, model.pause)] if expected else []
        assert self.world.told[told:] == changes
        self.see_who_was_let_in(model)

    def see_who_was_let_in(self, model: Model) -> None:
        live = [task for task in model.waiting if not (task.done() and task.cancelled())]
        let_in = [task for task in live if task.done() and task.exception() is None]
        sent_back = [task for task in live if task.done() and task.exception() is not None]
        assert live[: len(let_in)] == let_in  # first come, first served
        assert all(task.result() is False for task in let_in)
        if sent_back:
            assert sent_back == live
            assert all(isinstance(task.exception(), DeferredError) for task in sent_back)
            assert model.pause
        model.holding += [False] * len(let_in)
        model.waiting = [task for task in live if not task.done()]

    @rule(url=urls, nth=st.integers(0, 9))
    def somebody_who_waits_is_cancelled(self, url: str, nth: int) -> None:
        model = self.model(url)
        if model.waiting:
            model.waiting.pop(nth % len(model.waiting)).cancel()
            self.settle()
            self.see_who_was_let_in(model)

    @rule(seconds=st.sampled_from([0.5, 2.0, 10.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.time.now += seconds

    @rule()
    def lines_that_stall_are_sent_away(self) -> None:
        self.world.lanes.sweep()
        self.settle()
        for model in self.models.values():
            sent_back = [task for task in model.waiting if task.done()]
            assert sent_back in ([], model.waiting)
            assert all(isinstance(task.exception(), DeferredError) for task in sent_back)
            if sent_back:
                model.waiting = []

    @precondition(lambda self: not self.drained and len(self.models) > 1)
    @rule(really=st.sampled_from([False] * 9 + [True]))
    def the_worker_drains(self, *, really: bool) -> None:
        if not really:
            return
        self.drained = True
        self.world.lanes.drain()
        self.settle()
        for model in self.models.values():
            assert all(isinstance(task.exception(), InfrastructureError) for task in model.waiting)
            model.waiting = []

    @invariant()
    def places_are_kept(self) -> None:
        for url, model in self.models.items():
            lane = self.world.lanes.lane(url)
            assert lane.in_flight == len(model.holding) <= self.WIDEST
            assert lane.limit == model.limit
            assert sum(model.holding) <= 1  # probes
            for task in model.waiting:
                assert not task.done()
            if model.waiting:  # nobody waits beside a free place
                assert len(model.holding) >= model.limit
                assert not model.pause

    def teardown(self) -> None:
        try:
            self.every_place_is_free_again()
        finally:
            self.loop.close()

    def every_place_is_free_again(self) -> None:
        """When all have gone: of each lane, and of all together."""
        for url, model in self.models.items():
            for task in model.waiting:
                task.cancel()
            self.settle()
            for probe in model.holding:
                self.world.lanes.leave(self.world.lanes.lane(url), probe=probe)
            assert self.world.lanes.lane(url).idle
        if not self.drained:
            fresh = [self.enter(f"https://{n}.example:443") for n in range(self.SLOTS * 3 // 4 + 1)]
            assert [task.exception() is None for task in fresh] == [True] * len(fresh[1:]) + [False]


EveryOrder.TestCase.settings = settings(max_examples=30, stateful_step_count=30)
TestEveryOrder = EveryOrder.TestCase
