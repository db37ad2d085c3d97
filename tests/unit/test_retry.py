"""H3: properties of retry decisions, over all policies, errors and random numbers."""

import random
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from services.callback.domain import retry_policy
from shared.contracts.callback import MAX_DELAY, Retry, SendCallback
from shared.errors import DeferredError, TransientError
from shared.resilience.retry import (
    BUG_POLICY,
    JITTER,
    GiveUp,
    RetryPolicy,
    attempts_text,
    decide,
    defer,
    first_tier,
    next_hop,
)
from shared.resilience.retry import Retry as Retried
from shared.topology import BUG_TIERS, TIERS, Tier

NOW = 1_800_000_000.0
DAY = 86_400.0
SHORTEST, LONGEST = TIERS[0], TIERS[-1]

chances = st.floats(0, 1, exclude_max=True)
delays = st.floats(0, MAX_DELAY, exclude_min=True)
# The delays that errors request, even unreasonable ones.
requested = st.just(0.0) | st.floats(0, 1e12)


def after(  # noqa: PLR0913 - the inputs of the decision
    attempt: int,
    policy: RetryPolicy | None = None,
    tiers: Sequence[Tier] = TIERS,
    *,
    retry_after: float = 0.0,
    now: float = NOW,
    first_at: float = NOW,
    chance: float = 0.0,
) -> Retried | GiveUp:
    error = TransientError("the receiver responded with 500", retry_after=retry_after)
    return decide(
        policy or RetryPolicy(),
        tiers,
        attempt=attempt,
        first_at=first_at,
        now=now,
        error=error,
        chance=chance,
    )


def total_wait(
    retry: Retried, now: float, chance: random.Random, tiers: Sequence[Tier] = TIERS
) -> float:
    """Return the seconds from a failure to the next attempt, through the tiers of the queue."""
    at = now + retry.tier.seconds
    while hop := next_hop(retry.not_before - at, chance.random(), tiers):
        at += hop.seconds
    return at - now


def command(**fields: object) -> SendCallback:
    return SendCallback.model_validate(
        {"target_url": "https://example.com/", "hmac_secret": "s", "payload": None, **fields}
    )


def lifetime(
    policy: RetryPolicy, *, chance: random.Random, tiers: Sequence[Tier] = TIERS
) -> tuple[list[float], str]:
    """Return the times of all attempts of a message that always fails, and the final reason."""
    at, attempts = NOW, [NOW]
    while len(attempts) < 2000:
        decision = after(len(attempts), policy, tiers, now=at, chance=chance.random())
        if isinstance(decision, GiveUp):
            return attempts, decision.reason
        at += total_wait(decision, at, chance, tiers)
        attempts.append(at)
    raise AssertionError("the attempts do not end")


# H3
def test_h3_attempts_climb_the_tiers_and_stay_on_the_longest() -> None:
    decisions = [after(attempt) for attempt in range(1, len(TIERS) + 5)]
    assert [retry.tier for retry in decisions if isinstance(retry, Retried)] == [
        *TIERS,
        *[LONGEST] * 4,
    ]


# H3
@given(
    attempt=st.integers(1, 20), own=st.lists(delays, min_size=1, max_size=5), retry_after=requested
)
@example(attempt=1, own=[1.0], retry_after=86_400.0)
@example(attempt=3, own=[5.0, 15.0], retry_after=0.0)
@example(attempt=1, own=[1.0], retry_after=2.0)
@settings(max_examples=25)
def test_h3_no_delay_is_shorter_than_the_policy_or_the_receiver_requests(
    attempt: int, own: list[float], retry_after: float
) -> None:
    retry = after(attempt, RetryPolicy(delays=own), retry_after=retry_after)
    assert isinstance(retry, Retried)
    expected = max(own[min(attempt, len(own)) - 1], min(retry_after, LONGEST.seconds))
    assert retry.not_before >= NOW + expected  # a wait can pass in several tiers
    assert all(tier.seconds < expected for tier in TIERS if tier.seconds < retry.tier.seconds)


@given(attempt=st.integers(1, 9), retry_after=requested, chance=chances, seed=st.integers())
@settings(max_examples=25)
def test_jitter_stretches_a_delay_by_at_most_half_and_one_shortest_tier(
    attempt: int, retry_after: float, chance: float, seed: int
) -> None:
    retry = after(attempt, retry_after=retry_after, chance=chance)
    assert isinstance(retry, Retried)
    factor = (retry.not_before - NOW) / retry.tier.seconds
    assert 1 <= factor <= 1.5
    waited = total_wait(retry, NOW, random.Random(seed))
    assert retry.tier.seconds <= waited <= 1.5 * retry.tier.seconds + SHORTEST.seconds


def test_jitter_covers_the_whole_range() -> None:
    retries = [after(3, chance=chance) for chance in (0.0, 0.5, 0.999)]
    assert [
        round(retry.not_before - NOW, 2) for retry in retries if isinstance(retry, Retried)
    ] == [15.0, 18.75, 22.49]


@pytest.mark.parametrize("attempt", range(1, len(TIERS) + 1))
def test_a_thousand_simultaneous_failures_are_retried_spread_out(attempt: int) -> None:
    chance = random.Random(attempt)
    waits = []
    for _ in range(1000):
        retry = after(attempt, chance=chance.random())
        assert isinstance(retry, Retried)
        waits.append(total_wait(retry, NOW, chance))
    tier = TIERS[attempt - 1].seconds
    # Jitter spreads the attempts over this many steps of the shortest tier. No step may get more
    # than three times its even share, and none more than 80 % of the attempts.
    steps = max(tier / 2 / SHORTEST.seconds, 1)
    most = max(Counter(waits).values())
    assert most <= max(min(3 * 1000 / steps, 800), 10)
    assert len(set(waits)) >= min(steps, 300)
    assert fmean(waits) == pytest.approx(1.25 * tier, rel=0.1)


# H3
@given(
    attempt=st.integers(1, 50),
    retry_after=requested,
    chance=chances,
    lifetime_left=st.floats(0, 2 * MAX_DELAY),
)
@settings(max_examples=25)
def test_h3_no_attempt_is_planned_at_or_after_the_expiry(
    attempt: int, retry_after: float, chance: float, lifetime_left: float
) -> None:
    policy = RetryPolicy(expires_at=NOW + lifetime_left)
    decision = after(attempt, policy, retry_after=retry_after, chance=chance)
    unlimited = after(attempt, retry_after=retry_after, chance=chance)
    assert isinstance(unlimited, Retried)
    if isinstance(decision, Retried):
        assert decision == unlimited
        assert decision.not_before < NOW + lifetime_left
    else:
        assert unlimited.not_before >= NOW + lifetime_left
        expected = f"expired after {attempts_text(attempt)}: the receiver responded with 500"
        assert decision.reason == expected


# H3
@given(seed=st.integers(), give_up_after=st.floats(0, 2 * DAY))
@example(seed=0, give_up_after=DAY)
@settings(max_examples=15)
def test_h3_attempts_continue_exactly_until_give_up_after(seed: int, give_up_after: float) -> None:
    attempts, reason = lifetime(
        RetryPolicy(give_up_after=give_up_after), chance=random.Random(seed)
    )
    # The rest of the jitter is waited out in the shortest tier.
    assert attempts[-1] <= NOW + give_up_after + SHORTEST.seconds
    following = LONGEST if len(attempts) > len(TIERS) else TIERS[len(attempts) - 1]
    assert attempts[-1] + 1.5 * following.seconds > NOW + give_up_after
    assert reason.startswith(f"gave up after {attempts_text(len(attempts))} in ")
    assert reason.endswith(": the receiver responded with 500")


# H3
@given(
    count=st.none() | st.integers(0, 60),
    own=st.none() | st.lists(delays, min_size=1, max_size=8),
    seed=st.integers(),
)
@example(count=0, own=None, seed=0)
@example(count=0, own=[1.0], seed=0)
@example(count=1000, own=[301.0], seed=0)  # each in the tier of 15 min
@settings(max_examples=25)
def test_h3_a_callback_is_retried_exactly_as_often_as_it_requests(
    count: int | None, own: list[float] | None, seed: int
) -> None:
    assume(count is not None or own is not None)
    policy = retry_policy(
        command(retry=Retry(quick_retries_count=count, delays=own)), give_up_after=DAY
    )
    attempts, reason = lifetime(policy, chance=random.Random(seed))
    retries = count if count is not None else len(own or ())
    assert len(attempts) == 1 + retries
    assert reason == f"gave up after {attempts_text(1 + retries)}: the receiver responded with 500"
    expected = own or [tier.seconds for tier in TIERS]
    for nth, (before, later) in enumerate(pairwise(attempts)):
        assert later - before >= expected[min(nth, len(expected) - 1)]


def test_h3_a_callback_without_retry_settings_climbs_all_tiers_until_give_up_after() -> None:
    assert retry_policy(command(), give_up_after=DAY) == RetryPolicy(give_up_after=DAY)
    attempts, _ = lifetime(RetryPolicy(), chance=random.Random(1))
    assert DAY - 1.5 * LONGEST.seconds < attempts[-1] - NOW <= DAY + SHORTEST.seconds


@pytest.mark.parametrize("own", [None, Retry(quick_retries_count=3)])
def test_h3_the_expiry_of_a_callback_is_in_its_policy(own: Retry | None) -> None:
    expires_at = datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=20)
    policy = retry_policy(command(expires_at=expires_at, retry=own), give_up_after=DAY)
    assert policy.expires_at == NOW + 20
    attempts, reason = lifetime(policy, chance=random.Random(1))
    assert [round(at - NOW) for at in attempts[1:]] == sorted(
        {round(at - NOW) for at in attempts[1:]}
    )
    assert attempts[-1] < NOW + 20
    assert reason.startswith("expired after ")


@given(delay=st.floats(0, 1e6))
def test_a_deferred_message_waits_in_the_first_tier_that_is_long_enough(delay: float) -> None:
    tier = defer(
        RetryPolicy(), TIERS, first_at=NOW, now=NOW, error=DeferredError("full", delay=delay)
    )
    assert tier == first_tier(delay)
    assert isinstance(tier, Tier)
    assert tier.seconds >= min(delay, LONGEST.seconds)


def test_deferring_ends_at_the_expiry_or_at_give_up_after() -> None:
    at, hops = NOW, 0
    outcome: Tier | GiveUp = SHORTEST
    while isinstance(outcome, Tier) and hops < 2000:
        error = DeferredError("lane full", delay=60)
        outcome = defer(RetryPolicy(), TIERS, first_at=NOW, now=at, error=error)
        if isinstance(outcome, Tier):
            at += outcome.seconds
            hops += 1
    assert isinstance(outcome, GiveUp)
    assert outcome.reason == "gave up after 86400 s of waiting: lane full"
    assert hops == DAY / 60
    expiring = RetryPolicy(expires_at=NOW + 5)
    assert defer(
        expiring, TIERS, first_at=NOW, now=NOW, error=DeferredError("full", delay=5)
    ) == GiveUp("expired while waiting: full", expired=True)
    assert (
        defer(expiring, TIERS, first_at=NOW, now=NOW, error=DeferredError("full", delay=1))
        == SHORTEST
    )


@given(remaining=st.floats(-10, 2 * MAX_DELAY), seed=st.integers())
@settings(max_examples=25)
def test_hops_never_overshoot_by_a_whole_shortest_tier(remaining: float, seed: int) -> None:
    chance, left, hops = random.Random(seed), remaining, 0
    while hop := next_hop(left, chance.random()):
        left -= hop.seconds
        hops += 1
    assert -SHORTEST.seconds < left < SHORTEST.seconds or hops == 0 >= remaining
    # Each tier is used at most as often as it fits into the next one; the shortest once more.
    assert hops <= sum(long.seconds // short.seconds for short, long in pairwise(TIERS)) + 2


def test_a_due_message_does_not_wait() -> None:
    assert next_hop(0.0, 0.0) is None
    assert next_hop(-3600.0, 0.0) is None


@pytest.mark.parametrize("remaining", [0.1, 0.5, 0.9, 3.3, 77.7])
def test_the_mean_wait_through_hops_is_exact(remaining: float) -> None:
    chance = random.Random(7)
    waited = []
    for _ in range(2000):
        left = remaining
        while hop := next_hop(left, chance.random()):
            left -= hop.seconds
        waited.append(remaining - left)
    assert fmean(waited) == pytest.approx(remaining, abs=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_a_bug_in_a_queue_without_retries_is_retried_for_15_minutes_through_its_two_tiers(
    seed: int,
) -> None:
    attempts, reason = lifetime(BUG_POLICY, chance=random.Random(seed), tiers=BUG_TIERS)
    first, *others = (after - before for before, after in pairwise(attempts))
    assert 5 <= first <= 5 * 1.5 + 5
    assert all(60 <= wait <= 60 * 1.5 + 5 for wait in others)
    assert 900 - 60 * 1.5 <= attempts[-1] - NOW <= 900 + 5
    assert reason.startswith(f"gave up after {len(attempts)} attempts in 900 s")


@pytest.mark.parametrize(
    ("retry_after", "tier", "delay"), [(61, "1m", 61), (30, "1m", 60), (2, "1s", 2), (4, "5s", 5)]
)
def test_finding_b19_a_retry_waits_about_as_long_as_the_receiver_requests(
    retry_after: float, tier: str, delay: float
) -> None:
    """No tier has 61 s. The next one has five minutes, but shorter ones add up to it."""
    error = TransientError("429", retry_after=retry_after)
    for chance in (0.0, 0.99):
        decision = decide(
            RetryPolicy(), TIERS, attempt=1, first_at=NOW, now=NOW, error=error, chance=chance
        )
        assert isinstance(decision, Retried)
        assert decision.tier.name == tier
        assert decision.not_before == pytest.approx(NOW + delay * (1 + JITTER * chance))
