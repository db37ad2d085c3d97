"""When to try again: pure functions from a policy, an attempt and an error to a tier or the end.

A retry waits in the first tier that is long enough, and then out its jitter in shorter ones: the
message carries the moment it waits for (`x-ringback-not-before`), and `next_hop` says whether it
takes another hop when it comes back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shared.errors import DeferredError, TransientError
from shared.topology import TIERS, Tier

# A wait is stretched by up to this share, evenly drawn, so that messages that failed together do
# not come back together. Half a tier spreads a herd of the 15 s tier over 7.5 s.
JITTER: Final = 0.5


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How one message is retried.

    delays: seconds before the 2nd, 3rd, … attempt, at least one; the last one repeats.
    max_retries: retries after the first attempt; None for as many as fit into `give_up_after`.
    give_up_after: seconds after the message was first taken up beyond which no attempt starts.
    expires_at: epoch seconds at which the message loses its meaning; None for never.
    """

    delays: Sequence[float] = tuple(float(tier.seconds) for tier in TIERS)
    max_retries: int | None = None
    give_up_after: float = 86_400.0
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Wait in `tier`, then in shorter ones until `not_before` (epoch seconds), then try again."""

    tier: Tier
    not_before: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No more tries; the reason is for the dead letter.

    expired: its own time is over, not the schedule's.
    """

    reason: str
    expired: bool = False


def decide(  # noqa: PLR0913 - all that the decision depends on
    policy: RetryPolicy,
    *,
    attempt: int,
    first_at: float,
    now: float,
    error: TransientError,
    chance: float,
) -> Retry | GiveUp:
    """What follows failed attempt number `attempt` (1 is the first), made at `now`.

    `chance` in [0, 1) is the caller's random draw. The tier is never shorter than the schedule's
    delay and the error's `retry_after`, both up to the longest tier.
    """
    if policy.max_retries is not None and attempt > policy.max_retries:
        return GiveUp(f"gave up after {attempt} attempts: {error}")
    index = min(attempt, len(policy.delays)) - 1
    tier = first_tier(max(policy.delays[index], error.retry_after))
    not_before = now + tier.seconds * (1 + JITTER * chance)
    if policy.expires_at is not None and not_before >= policy.expires_at:
        return GiveUp(f"expired after {attempt} attempts: {error}", expired=True)
    if not_before > first_at + policy.give_up_after:
        return GiveUp(
            f"gave up after {attempt} attempts in {policy.give_up_after:.0f} seconds: {error}"
        )
    return Retry(tier, not_before)


def defer(
    policy: RetryPolicy, *, first_at: float, now: float, error: DeferredError
) -> Tier | GiveUp:
    """Where a message waits that was not tried; the end comes as for one that was."""
    tier = first_tier(error.delay)
    if policy.expires_at is not None and now + tier.seconds >= policy.expires_at:
        return GiveUp(f"expired while waiting: {error}", expired=True)
    if now + tier.seconds > first_at + policy.give_up_after:
        return GiveUp(f"gave up after {policy.give_up_after:.0f} seconds of waiting: {error}")
    return tier


def first_tier(delay: float, tiers: Sequence[Tier] = TIERS) -> Tier:
    """The shortest tier that waits at least `delay` seconds; the longest where none does."""
    return next((tier for tier in tiers if tier.seconds >= delay), tiers[-1])


def next_hop(remaining: float, chance: float, tiers: Sequence[Tier] = TIERS) -> Tier | None:
    """The tier to wait in while `remaining` seconds are left; None when it is time to try.

    The longest tier that does not overshoot. What is left below the shortest tier is waited out
    in it with that probability (`chance` is the caller's draw from [0, 1)), so that the mean wait
    is the wanted one.
    """
    fitting = [tier for tier in tiers if tier.seconds <= remaining]
    if fitting:
        return fitting[-1]
    return tiers[0] if remaining > chance * tiers[0].seconds else None
