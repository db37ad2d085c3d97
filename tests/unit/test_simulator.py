"""N15: laws of the simulator, and figures that can be computed by hand."""

import asyncio
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.callback.settings import CallbackSettings
from services.simulator.drawing import draw
from services.simulator.engine import simulate
from services.simulator.figures import MAX_POINTS, Course, Result
from services.simulator.scenario import (
    InvalidScenarioError,
    Scenario,
    callback_settings,
    one_target,
    parse,
)

DEFAULTS = CallbackSettings.model_construct()


def run(scenario: Scenario, configured: CallbackSettings = DEFAULTS) -> Result:
    return asyncio.run(simulate(scenario, callback_settings(scenario, configured)))


def of(**scenario: Any) -> Scenario:
    return Scenario.model_validate(scenario)


def row(result: Result, target: str = "t") -> Mapping[str, Any]:
    return next(each for each in result.rows() if each["target"] == target)


responses = st.sampled_from([500, 503, 404, 410, 429, "timeout", "refused", "unreachable"])
failures = st.lists(
    st.fixed_dictionaries(
        {
            "response": responses,
            "probability": st.floats(0.05, 1),
            "of": st.sampled_from(["attempts", "callbacks"]),
        },
        optional={"retry_after": st.integers(0, 100)},
    ),
    max_size=2,
)
outages = st.lists(st.integers(0, 300), min_size=2, max_size=4, unique=True).map(
    lambda times: [
        {"from": start, "to": end, "response": "timeout"} for start, end in pairwise(sorted(times))
    ][:1]
)
quick = st.integers(0, 4)
retries = st.one_of(
    st.just({}),
    st.builds(
        lambda n, delays: {"retry": {"quick_retries_count": n, "delays": delays}},
        quick,
        st.lists(st.sampled_from([1.0, 3.0, 5.0, 60.0]), min_size=1, max_size=3),
    ),
    st.builds(
        lambda n, stop: {
            "scheduled": {"quick_retries_count": n, "base_delay": 30.0, "stop_after_delay": stop}
        },
        quick,
        st.sampled_from([60.0, 600.0]),
    ),
)
targets = st.builds(
    lambda rate, latency, hosts, failing, down, retry: (
        {"rate": rate, "latency": latency, "hosts": hosts, "failures": failing, "outages": down}
        | retry
    ),
    st.sampled_from([0.5, 5.0, 20.0]),
    st.sampled_from([0.0, 0.1, 3.0, 20.0]),
    st.integers(1, 3),
    failures,
    outages,
    retries,
)
scenarios = st.builds(
    lambda each, duration, workers, seed, small: of(
        targets=[target | {"name": f"t{n}"} for n, target in enumerate(each)],
        duration=duration,
        end=3600.0,
        workers=workers,
        seed=seed,
        callback={"prefetch": 20, "lane_limit": 5} if small else {"give_up_after": 900},
    ),
    st.lists(targets, min_size=1, max_size=3),
    st.sampled_from([1.0, 10.0]),
    st.integers(1, 3),
    st.integers(),
    st.booleans(),
)


@settings(max_examples=25)
@given(scenarios)
def test_n15_every_callback_ends_or_still_waits_and_nothing_is_lost(scenario: Scenario) -> None:
    result = run(scenario)
    for target, figures in zip(scenario.targets, result.counted, strict=False):
        assert figures.callbacks == scenario.callbacks_of(target)
        assert figures.unfinished >= 0
        assert figures.attempts >= figures.delivered
        assert all(waiting >= 0 for waiting in figures.waiting.values())
        assert sum(figures.waiting.values()) <= figures.unfinished
        assert sum(figures.deepest.values()) >= sum(figures.waiting.values())
        if not figures.unfinished:
            assert not any(figures.waiting.values())
    series = result.series()
    total = result.counted[-1]
    for name, sum_ in (
        ("attempts", total.attempts),
        ("delivered", total.delivered),
        ("dead", total.dead),
        ("messages", total.messages.total),
    ):
        assert sum(series[name]) == sum_  # type: ignore[call-overload]
    assert result.seconds <= scenario.end
    draw(result)


@settings(max_examples=10)
@given(scenarios)
def test_n15_the_same_seed_gives_the_same_result(scenario: Scenario) -> None:
    first, second = run(scenario), run(scenario)
    assert (first.rows(), first.series()) == (second.rows(), second.series())


@settings(max_examples=25)
@given(
    st.integers(0, 5),
    st.lists(st.sampled_from([1.0, 5.0, 20.0]), min_size=1, max_size=3),
    st.floats(0.1, 1),
    st.integers(),
)
def test_n15_attempts_never_exceed_the_policy(
    quick_retries: int, delays: list[float], probability: float, seed: int
) -> None:
    target = {
        "name": "t",
        "rate": 20,
        "latency": 0.05,
        "failures": [{"response": 500, "probability": probability}],
        "retry": {"quick_retries_count": quick_retries, "delays": delays},
    }
    figures = row(run(of(targets=[target], duration=2, seed=seed)))
    assert figures["delivered"] + figures["dead"] == 40
    assert figures["attempts"] <= 40 * (quick_retries + 1)
    assert figures["attempts"] >= figures["delivered"] + figures["dead"] * (quick_retries + 1)
    if probability == 1:
        assert figures["dead"] == 40


@settings(max_examples=25)
@given(st.floats(0.001, 2), st.integers(1, 3))
def test_n15_without_failures_the_delay_is_the_latency(latency: float, workers: int) -> None:
    target = {"name": "t", "rate": 1, "latency": latency}
    figures = row(run(of(targets=[target], duration=30, workers=workers)))
    assert (figures["callbacks"], figures["attempts"], figures["delivered"]) == (30, 30, 30)
    assert figures["deferrals"] == figures["dead"] == 0
    assert figures["delay_p50"] == pytest.approx(latency)
    assert figures["delay_p99"] == pytest.approx(latency)
    assert figures["messages"] == 30


def test_n15_a_callback_that_always_fails_takes_each_tier_once() -> None:
    target = {
        "name": "t",
        "rate": 1,
        "latency": 0,
        "failures": [{"response": 404, "probability": 1}],
        "retry": {"delays": [1.0, 5.0, 15.0]},
    }
    result = run(of(targets=[target], duration=1))
    figures = row(result)
    assert (figures["attempts"], figures["delivered"], figures["dead"]) == (4, 0, 1)
    # The three delays, and at most half of each as jitter.
    assert 21 <= result.seconds <= 21 * 1.5 + 1
    assert result.counted[0].deepest["15s"] == 1


def test_n15_the_jitter_of_a_retry_passes_in_tiers() -> None:
    target = {
        "name": "t",
        "rate": 400,
        "latency": 0,
        "failures": [{"response": 500, "probability": 0.5}],
        "retry": {"delays": [1.0], "quick_retries_count": 1},
    }
    (figures,) = run(of(targets=[target], duration=10)).counted
    retried = [delay for delay in figures.delays if delay > 0]
    # A jitter of half a second at most takes another second, in a quarter of the cases.
    assert {round(delay) for delay in retried} == {1, 2}
    assert sum(delay > 1.5 for delay in retried) / len(retried) == pytest.approx(0.25, abs=0.05)


def test_n15_a_callback_waits_for_its_place_in_the_lane() -> None:
    target = {"name": "t", "rate": 20, "latency": 0.1}
    (figures,) = run(of(targets=[target], duration=0.3, callback={"lane_limit": 1})).counted
    # One every 0.05 s, and one request of 0.1 s at a time.
    assert list(figures.delays) == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3, 0.35])
    assert figures.deferrals == 0


def test_n15_a_permanent_refusal_is_dead_at_once() -> None:
    target = {
        "name": "t",
        "rate": 10,
        "failures": [{"response": 410, "probability": 1}],
    }
    figures = row(run(of(targets=[target], duration=1)))
    assert (figures["attempts"], figures["dead"], figures["messages"]) == (10, 10, 20)


def test_n15_attempts_follow_the_probability_of_a_failure() -> None:
    target = {
        "name": "t",
        "rate": 200,
        "latency": 0.01,
        "failures": [{"response": 500, "probability": 0.4}],
    }
    figures = row(run(of(targets=[target], duration=50)))
    assert figures["delivered"] == 10_000
    assert figures["attempts"] == pytest.approx(10_000 / 0.6, rel=0.02)


def test_n15_an_outage_opens_the_breaker_and_everything_is_delivered_afterwards() -> None:
    result = run(one_target(4, down=600))
    figures = row(result, "target")
    assert figures["callbacks"] == figures["delivered"] == 4 * 1260
    # Few attempts during the outage: those that found the target working, and a probe a minute.
    assert figures["callbacks"] < figures["attempts"] < figures["callbacks"] + 100
    # Most wait in the longest tier of deferrals, and return within five minutes of its end.
    assert figures["deepest_tier"] == "5m"
    assert figures["deepest_tier_waiting"] > 4 * 300 / 2
    assert 60 + 600 < figures["last_delivery"] < 60 + 600 + 600 + 1
    waiting = result.series()["waiting"]
    assert max(waiting["5m"]) == figures["deepest_tier_waiting"]  # type: ignore[index]


def test_n15_a_target_that_never_works_again_has_only_dead_letters() -> None:
    settings_ = {"give_up_after": 120.0}
    target = {"name": "t", "rate": 5, "outages": [{"from": 0, "to": "1 day", "response": 503}]}
    result = run(of(targets=[target], duration=60, callback=settings_))
    figures = row(result)
    assert (figures["dead"], figures["delivered"]) == (300, 0)
    assert figures["waiting"] == 0
    assert result.seconds < 60 + 120


def test_n15_main_retries_of_the_scheduler_follow_its_rules() -> None:
    target = {
        "name": "t",
        "rate": 1,
        "latency": 0,
        "outages": [{"from": 0, "to": 1000, "response": 500}],
        "scheduled": {"quick_retries_count": 0, "strategy": "exponential", "base_delay": 100.0}
        | {"delay_growth_rate": 2.0},
    }
    result = run(of(targets=[target], duration=1))
    figures = row(result)
    # Attempts at 0, 100, 300, 700 and 1500 s.
    assert (figures["attempts"], figures["delivered"]) == (5, 1)
    assert figures["delay_p50"] == pytest.approx(1500, abs=0.01)
    assert max(result.series()["waiting"]["main retries"]) == 1  # type: ignore[index]


def test_n15_a_scheduled_callback_fails_when_its_time_is_over() -> None:
    target = {
        "name": "t",
        "rate": 1,
        "latency": 0,
        "failures": [{"response": 500, "probability": 1}],
        "scheduled": {"quick_retries_count": 1, "base_delay": 100.0, "stop_after_delay": 250.0},
    }
    figures = row(run(of(targets=[target], duration=1)))
    # Two attempts at 0, after 100 and after 200 s.
    assert (figures["attempts"], figures["dead"]) == (6, 1)


def test_n15_a_hanging_target_does_not_delay_another() -> None:
    result = run(
        of(
            targets=[
                {"name": "hangs", "rate": 50, "outages": [{"from": 0, "to": 60}]},
                {"name": "works", "rate": 50, "latency": 0.02},
            ],
            duration=60,
        )
    )
    works = row(result, "works")
    assert works["delivered"] == works["attempts"] == 3000
    assert works["delay_p99"] < 0.1
    assert row(result, "all")["callbacks"] == 6000


def test_n15_the_course_keeps_its_sums_and_its_peaks_when_its_points_merge() -> None:
    course = Course(["5s"])
    for second in range(MAX_POINTS * 3):
        course.advance(second)
        course.count("attempts")
        course.depth("5s", 7 if second == 100 else 1)
    assert course.width == 4
    assert sum(course.counts["attempts"]) == MAX_POINTS * 3
    assert max(course.depths["5s"]) == 7
    assert course.points == MAX_POINTS * 3 // 4


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("duration = ", "not valid TOML"),
        ("duration = 10", "targets"),
        ('duration = "10 parsecs"\ntargets = [{name="a", rate=1}]', "duration"),
        ('duration = 10\ntargets = [{name="a"}]', "set either rate or share"),
        ('duration = 10\ntargets = [{name="a", share=1}]', "needs a rate"),
        ('duration = 10\ntargets = [{name="a", rate=1}, {name="a", rate=1}]', "the same name"),
        ('duration = "2 days"\ntargets = [{name="a", rate=1000}]', "callbacks, at most"),
        ('duration = 10\ntargets = [{name="a", rate=1, retries=3}]', "targets"),
    ],
)
def test_n15_an_invalid_scenario_names_what_is_wrong(text: str, fault: str) -> None:
    with pytest.raises(InvalidScenarioError) as caught:
        parse(text)
    assert fault in str(caught.value)


def test_n15_settings_of_the_scenario_replace_the_configured_ones() -> None:
    scenario = of(
        duration=1, targets=[{"name": "t", "rate": 1}], callback={"lane_limit": 7, "timeout": 3}
    )
    configured = CallbackSettings.model_construct(prefetch=10, timeout=5.0)
    given_settings = callback_settings(scenario, configured)
    assert (given_settings.lane_limit, given_settings.timeout) == (7, 3)
    assert given_settings.prefetch == 10
    wrong = scenario.model_copy(update={"callback": {"lane_limits": 7}})
    with pytest.raises(InvalidScenarioError, match=r"callback\.lane_limits"):
        callback_settings(wrong, configured)
