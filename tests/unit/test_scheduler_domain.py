"""The life of a scheduled callback: properties of its transitions, in any order."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler import domain
from services.scheduler.domain import Rules, ScheduledCallback
from services.scheduler.recurrence import Recurrence
from shared.contracts.schedules import MAX_DELAY_AHEAD, RetryParams, ScheduleCallback, Status

NOW = datetime(2026, 11, 20, 15, tzinfo=UTC)
DELAYS = st.floats(0.001, MAX_DELAY_AHEAD)
RULES = st.builds(Rules, base_delay=DELAYS, growth=st.floats(1, 1000))


def scheduled(**fields: object) -> ScheduledCallback:
    callback = ScheduledCallback(UUID(int=1), "", None, None, run_at=NOW, next_at=NOW)
    return replace(callback, **fields)  # type: ignore[arg-type]


def in_flight(**fields: object) -> ScheduledCallback:
    dispatched: dict[str, object] = {
        "status": Status.DISPATCHED,
        "in_flight": True,
        "dispatch": 1,
        "next_at": NOW + timedelta(seconds=60),
        "stop_at": NOW + timedelta(days=5),
    }
    return scheduled(**(dispatched | fields))


def recurring(**fields: object) -> ScheduledCallback:
    return in_flight(rules=Rules(recurrence=Recurrence(every=60, count=2)), **fields)


@given(RULES, st.integers(0, 100_000))
def test_s5_the_main_delay_never_shrinks_and_never_exceeds_ten_years(
    rules: Rules, retries: int
) -> None:
    delay = domain.main_delay(rules, retries)
    assert min(rules.base_delay, MAX_DELAY_AHEAD) <= delay <= MAX_DELAY_AHEAD
    assert delay <= domain.main_delay(rules, retries + 1)


@given(DELAYS, st.integers(0, 1000))
def test_s5_the_constant_strategy_keeps_its_delay(base: float, retries: int) -> None:
    assert domain.main_delay(Rules(base_delay=base), retries) == base


def test_s5_the_exponential_strategy_multiplies_its_delay() -> None:
    rules = Rules(base_delay=10, growth=3)
    assert [domain.main_delay(rules, n) for n in range(4)] == [10, 30, 90, 270]


@given(
    st.integers(0, 1000), st.floats(0.1, 300), st.floats(1, MAX_DELAY_AHEAD), st.floats(1, 86_400)
)
def test_a_lease_is_longer_than_all_quick_retries_or_stop_after_delay(
    count: int, timeout: float, stop_after: float, slack: float
) -> None:
    retry = RetryParams(quick_retries_count=count, stop_after_delay=stop_after)
    lease = domain.lease(retry, timeout, slack=slack)
    work = domain.max_quick_delay(count) + (count + 1) * timeout
    assert lease >= min(work, stop_after) + slack


def test_s5_a_failed_dispatch_plans_a_main_retry() -> None:
    after, transition = domain.dispatch_failed(
        in_flight(dispatch_attempts=2), 1, 3, "500", NOW, final=False
    )
    assert (after.status, after.in_flight, after.attempts) == (Status.RETRYING, False, 3)
    assert after.next_at == NOW + timedelta(seconds=60)
    assert transition is not None
    assert transition.status is Status.RETRYING


def test_row_30_a_main_retry_waits_as_long_as_the_receiver_requested() -> None:
    for requested, delay in ((600.0, 600), (30.0, 60)):
        after, _ = domain.dispatch_failed(
            in_flight(), 1, 1, "503", NOW, final=False, retry_after=requested
        )
        assert after.next_at == NOW + timedelta(seconds=delay)


def test_s5_a_callback_fails_if_the_next_retry_would_come_after_stop_at() -> None:
    ending = in_flight(stop_at=NOW + timedelta(seconds=59), earlier_attempts=2)
    after, transition = domain.dispatch_failed(ending, 1, 1, "500", NOW, final=False)
    assert after.status is Status.FAILED
    assert transition is not None
    assert transition.error == "gave up after 3 attempts: 500"


def test_s11_a_callback_without_any_attempt_does_not_expire() -> None:
    ending = in_flight(stop_at=NOW + timedelta(seconds=1))
    after, _ = domain.dispatch_failed(ending, 1, 0, "expired before an attempt", NOW, final=False)
    assert (after.status, after.stop_at) == (Status.RETRYING, None)


def test_a_final_failure_needs_no_retry() -> None:
    after, _ = domain.dispatch_failed(in_flight(), 1, 1, "410", NOW, final=True)
    assert (after.status, after.last_error) == (Status.FAILED, "410")


@given(st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_row_18_facts_of_an_expired_lease_change_nothing(
    dispatch: int,
    attempt: int,
    final: bool,  # noqa: FBT001 - hypothesis passes it by position
) -> None:
    current = in_flight(dispatch=6, first_dispatch=6)
    unchanged = (current, None)
    assert domain.dispatch_failed(current, dispatch, attempt, "x", NOW, final=final) == unchanged
    assert domain.attempt_failed(current, dispatch, attempt, "x", NOW) == unchanged
    assert domain.delivered(current, dispatch, attempt, NOW) == unchanged


def test_any_dispatch_of_the_occurrence_may_deliver_it() -> None:
    retried = in_flight(dispatch=3, first_dispatch=2)
    assert domain.delivered(retried, 2, 1, NOW)[0].status is Status.NOTIFIED
    assert domain.delivered(retried, 1, 1, NOW)[0] is retried
    waiting = replace(retried, in_flight=False, status=Status.RETRYING)
    assert domain.delivered(waiting, 3, 1, NOW)[0].status is Status.NOTIFIED


def test_s8_cancel_in_flight_stops_main_retries() -> None:
    after, transition = domain.cancel(in_flight())
    assert (after.in_flight, after.cancel_requested, transition) == (True, True, None)
    failed, _ = domain.dispatch_failed(after, 1, 1, "500", NOW, final=False)
    assert failed.status is Status.CANCELLED
    assert domain.delivered(after, 1, 1, NOW)[0].status is Status.NOTIFIED
    assert domain.claimed(after, NOW + timedelta(days=1))[0].status is Status.CANCELLED


def test_s8_cancel_between_retries_stops_the_callback() -> None:
    after, transition = domain.cancel(scheduled(status=Status.RETRYING, earlier_attempts=3))
    assert (after.status, after.attempts) == (Status.CANCELLED, 3)
    assert transition is not None


def test_s8_a_rescheduled_callback_starts_without_attempts() -> None:
    exhausted = scheduled(
        status=Status.RETRYING, dispatch=4, earlier_attempts=9, main_retries=3, stop_at=NOW
    )
    rescheduled = domain.reschedule(exhausted, NOW + timedelta(hours=1), NOW)
    assert (rescheduled.status, rescheduled.attempts, rescheduled.main_retries) == (
        Status.SCHEDULED,
        0,
        0,
    )
    assert (rescheduled.stop_at, rescheduled.first_dispatch) == (None, 5)
    assert rescheduled.next_at == NOW + timedelta(hours=1)
    assert domain.reschedule(exhausted, NOW - timedelta(hours=1), NOW).next_at == NOW


def test_a_misfire_is_skipped_only_on_request_and_after_its_grace() -> None:
    after_grace = NOW + timedelta(seconds=61)
    skipping = in_flight(rules=Rules(grace=60))
    after, transition = domain.claimed(skipping, after_grace)
    assert after.status is Status.FAILED
    assert transition is not None
    assert transition.misfired
    assert domain.claimed(skipping, NOW + timedelta(seconds=60))[0] is skipping
    assert domain.claimed(in_flight(), after_grace)[0].in_flight


def test_a_callback_past_stop_at_fails_when_it_is_claimed() -> None:
    attempted = in_flight(stop_at=NOW, earlier_attempts=1)
    assert domain.claimed(attempted, NOW)[0].status is Status.FAILED


def test_finding_a5_a_callback_that_was_never_attempted_does_not_fail_when_it_is_claimed() -> None:
    unattempted = in_flight(stop_at=NOW)
    assert domain.claimed(unattempted, NOW)[0] is unattempted


def test_finding_a5_a_dispatch_without_an_attempt_is_repeated_and_is_no_main_retry() -> None:
    hourly = Rules(base_delay=3600, growth=2)
    after, _ = domain.dispatch_failed(in_flight(rules=hourly), 1, 0, "expired", NOW, final=False)
    assert (after.status, after.main_retries) == (Status.RETRYING, 0)
    assert after.next_at == NOW + timedelta(seconds=60)


def test_finding_a6_skip_also_applies_after_a_release_or_a_lost_lease() -> None:
    released = in_flight(rules=Rules(grace=60), dispatch=3)
    late = NOW + timedelta(seconds=61)
    after, transition = domain.claimed(released, late)
    assert after.status is Status.FAILED
    assert transition is not None
    assert transition.misfired
    # A retry is not a misfire.
    retried = replace(released, earlier_attempts=1)
    assert domain.claimed(retried, late)[0] is retried


@given(st.integers(1, 1000))
def test_finding_a7_quick_retries_are_quick(count: int) -> None:
    assert domain.max_quick_delay(5) <= 80
    assert domain.max_quick_delay(count) <= 1.5 * 15 * count


def test_a_recurring_callback_continues_after_success_and_failure() -> None:
    for after, transition in (
        domain.delivered(recurring(), 1, 1, NOW),
        domain.dispatch_failed(recurring(), 1, 1, "410", NOW, final=True),
    ):
        assert (after.status, after.occurrence) == (Status.SCHEDULED, 2)
        assert after.run_at == NOW + timedelta(seconds=60)
        assert transition is not None
        assert transition.callback.occurrence == 1


def test_a_recurring_callback_ends_with_its_last_occurrence_or_a_cancel() -> None:
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
def test_stored_rules_are_parsed_to_the_same_rules(
    repeat: object, misfire: object, retry: object
) -> None:
    fields = {"url": "https://a.example.com", "repeat": repeat, "misfire": misfire}
    command = ScheduleCallback.model_validate_json(json.dumps(fields | {"retry_params": retry}))
    stored = domain.stored_rules(command)
    rules = domain.parse_rules(None if stored is None else json.dumps(stored))
    assert rules.base_delay == (3.0 if retry else 60.0)
    assert rules.growth == (1.5 if retry else 1.0)
    assert rules.grace == {"fire": None, "skip": 60.0}.get(str(misfire), 5.0)
    assert (rules.recurrence is None) == (repeat is None)
    if rules.recurrence is not None and command.repeat is not None:
        assert (rules.recurrence.every, rules.recurrence.cron, rules.recurrence.timezone) == (
            command.repeat.every,
            command.repeat.cron,
            command.repeat.timezone,
        )
