"""The life of an event: laws of its steps, whatever happens in whatever order."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler import domain
from services.scheduler.domain import Rules, ScheduledCallback
from services.scheduler.recurrence import Rhythm
from shared.contracts.schedules import MAX_DELAY_AHEAD, RetryParams, ScheduleCallback, Status

NOW = datetime(2026, 11, 20, 15, tzinfo=UTC)
DELAYS = st.floats(0.001, MAX_DELAY_AHEAD)
RULES = st.builds(Rules, base_delay=DELAYS, growth=st.floats(1, 1000))


def event(**fields: object) -> ScheduledCallback:
    start = ScheduledCallback(UUID(int=1), "", None, None, run_at=NOW, next_at=NOW)
    return replace(start, **fields)  # type: ignore[arg-type]


def in_flight(**fields: object) -> ScheduledCallback:
    given_out: dict[str, object] = {
        "status": Status.DISPATCHED,
        "in_flight": True,
        "dispatch": 1,
        "next_at": NOW + timedelta(seconds=60),
        "stop_at": NOW + timedelta(days=5),
    }
    return event(**(given_out | fields))


@given(RULES, st.integers(0, 100_000))
def test_s5_a_main_delay_never_shrinks_and_never_exceeds_ten_years(
    rules: Rules, retries: int
) -> None:
    delay = domain.main_delay(rules, retries)
    assert min(rules.base_delay, MAX_DELAY_AHEAD) <= delay <= MAX_DELAY_AHEAD
    assert delay <= domain.main_delay(rules, retries + 1)


@given(DELAYS, st.integers(0, 1000))
def test_s5_constant_is_constant(base: float, retries: int) -> None:
    assert domain.main_delay(Rules(base_delay=base), retries) == base


def test_s5_exponential_grows_by_its_factor() -> None:
    rules = Rules(base_delay=10, growth=3)
    assert [domain.main_delay(rules, n) for n in range(4)] == [10, 30, 90, 270]


@given(
    st.integers(0, 1000), st.floats(0.1, 300), st.floats(1, MAX_DELAY_AHEAD), st.floats(1, 86_400)
)
def test_a_lease_outlasts_the_quick_retries_or_what_is_left_of_the_promise(
    count: int, timeout: float, stop_after: float, slack: float
) -> None:
    retry = RetryParams(quick_retries_count=count, stop_after_delay=stop_after)
    lease = domain.lease(retry, timeout, slack=slack)
    work = domain.quick_wait(count) + (count + 1) * timeout
    assert lease >= min(work, stop_after) + slack


def test_s5_spent_quick_retries_are_retried_from_the_database() -> None:
    after, told = domain.given_back(in_flight(tries=2), 1, 3, "500", NOW, final=False)
    assert (after.status, after.in_flight, after.attempts) == (Status.RETRYING, False, 3)
    assert after.next_at == NOW + timedelta(seconds=60)
    assert told is not None
    assert told.status is Status.RETRYING


def test_s5_it_is_failed_when_the_next_try_would_be_stale() -> None:
    late = in_flight(stop_at=NOW + timedelta(seconds=59))
    after, told = domain.given_back(late, 1, 1, "500", NOW, final=False)
    assert after.status is Status.FAILED
    assert told is not None
    assert "500" in str(told.error)


def test_s11_what_was_never_tried_is_not_stale() -> None:
    late = in_flight(stop_at=NOW + timedelta(seconds=1))
    after, _ = domain.given_back(late, 1, 0, "expired before the first try", NOW, final=False)
    assert (after.status, after.stop_at) == (Status.RETRYING, None)


def test_a_refusal_for_good_fails_at_once() -> None:
    after, _ = domain.given_back(in_flight(), 1, 1, "410", NOW, final=True)
    assert (after.status, after.last_error) == (Status.FAILED, "410")


@given(st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_row_18_a_lease_that_is_over_settles_nothing(told: int, attempt: int, final: bool) -> None:  # noqa: FBT001
    now_at = in_flight(dispatch=6, first_dispatch=6)
    assert domain.given_back(now_at, told, attempt, "x", NOW, final=final) == (now_at, None)
    assert domain.tried(now_at, told, attempt, "x", NOW) == (now_at, None)
    assert domain.delivered(now_at, told, attempt, NOW) == (now_at, None)


def test_any_dispatch_of_the_promise_may_bring_it() -> None:
    retried = in_flight(dispatch=3, first_dispatch=2)
    assert domain.delivered(retried, 2, 1, NOW)[0].status is Status.NOTIFIED
    assert domain.delivered(retried, 1, 1, NOW)[0] is retried
    waiting = replace(retried, in_flight=False, status=Status.RETRYING)
    assert domain.delivered(waiting, 3, 1, NOW)[0].status is Status.NOTIFIED


def test_s8_a_cancel_in_flight_ends_with_what_is_in_flight() -> None:
    after, told = domain.cancel(in_flight())
    assert (after.in_flight, after.cancelled, told) == (True, True, None)
    assert domain.given_back(after, 1, 1, "500", NOW, final=False)[0].status is Status.CANCELLED
    assert domain.delivered(after, 1, 1, NOW)[0].status is Status.NOTIFIED
    assert domain.taken(after, NOW + timedelta(days=1))[0].status is Status.CANCELLED


def test_s8_a_cancel_between_retries_is_the_end() -> None:
    waiting = event(status=Status.RETRYING, attempts=3)
    after, told = domain.cancel(waiting)
    assert after.status is Status.CANCELLED
    assert told is not None


def test_s8_a_moved_event_is_a_new_promise() -> None:
    spent = event(status=Status.RETRYING, dispatch=4, attempts=9, retries=3, stop_at=NOW)
    moved = domain.move(spent, NOW + timedelta(hours=1), NOW)
    assert (moved.status, moved.attempts, moved.retries) == (Status.SCHEDULED, 0, 0)
    assert (moved.stop_at, moved.first_dispatch) == (None, 5)
    assert moved.next_at == NOW + timedelta(hours=1)
    assert domain.move(spent, NOW - timedelta(hours=1), NOW).next_at == NOW


def test_a_misfire_is_skipped_only_when_asked_for_and_past_its_grace() -> None:
    late = NOW + timedelta(seconds=61)
    asked = in_flight(rules=Rules(grace=60))
    after, told = domain.taken(asked, late)
    assert after.status is Status.FAILED
    assert told is not None
    assert told.misfired
    assert domain.taken(asked, NOW + timedelta(seconds=60))[0] is asked
    assert domain.taken(in_flight(), late)[0].in_flight
    again = in_flight(rules=Rules(grace=60), dispatch=2)  # tried before: no misfire
    assert domain.taken(again, late)[0] is again


def test_a_stale_event_fails_when_it_is_claimed() -> None:
    assert domain.taken(in_flight(stop_at=NOW), NOW)[0].status is Status.FAILED


def recurring(**fields: object) -> ScheduledCallback:
    return in_flight(rules=Rules(rhythm=Rhythm(every=60, count=2)), **fields)


def test_a_recurring_event_goes_on_after_success_and_failure() -> None:
    for after, told in (
        domain.delivered(recurring(), 1, 1, NOW),
        domain.given_back(recurring(), 1, 1, "410", NOW, final=True),
    ):
        assert (after.status, after.occurrence) == (Status.SCHEDULED, 2)
        assert after.run_at == NOW + timedelta(seconds=60)
        assert told is not None
        assert told.event.occurrence == 1


def test_a_recurring_event_ends_with_its_last_occurrence_or_a_cancel() -> None:
    assert domain.delivered(recurring(occurrence=2), 1, 1, NOW)[0].status is Status.NOTIFIED
    cancelled, _ = domain.cancel(recurring())
    assert domain.delivered(cancelled, 1, 1, NOW)[0].status is Status.CANCELLED


def test_a_repeated_fact_of_an_earlier_occurrence_changes_nothing() -> None:
    second, _ = domain.delivered(recurring(), 1, 1, NOW)
    assert domain.delivered(second, 1, 1, NOW) == (second, None)


@given(
    st.sampled_from([None, {"every": 90.5}, {"cron": "30 2 * * *", "timezone": "Europe/Berlin"}]),
    st.sampled_from(["fire", "skip", {"policy": "skip", "grace": 5.0}]),
    st.sampled_from(
        [None, {"strategy": "exponential", "base_delay": 3.0, "delay_growth_rate": 1.5}]
    ),
)
def test_rules_survive_the_store(repeat: object, misfire: object, retry: object) -> None:
    fields = {"url": "https://a.example.com", "repeat": repeat, "misfire": misfire}
    order = ScheduleCallback.model_validate_json(json.dumps(fields | {"retry_params": retry}))
    stored = domain.rules_of(order)
    rules = domain.rules(None if stored is None else json.dumps(stored))
    assert rules.base_delay == (3.0 if retry else 60.0)
    assert rules.growth == (1.5 if retry else 1.0)
    assert rules.grace == {"fire": None, "skip": 60.0}.get(str(misfire), 5.0)
    assert (rules.rhythm is None) == (repeat is None)
    if rules.rhythm is not None and order.repeat is not None:
        assert (rules.rhythm.every, rules.rhythm.cron, rules.rhythm.timezone) == (
            order.repeat.every,
            order.repeat.cron,
            order.repeat.timezone,
        )
