"""Retry decisions: pure functions of a policy, an attempt and an error.

A retry first waits in the shortest tier that covers its delay. Its jitter then passes in shorter
tiers: the message carries the time of its next attempt (`x-ringback-not-before`), and each time it
returns, `next_hop` returns the next tier or None.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shared.errors import DeferredError, TransientError
from shared.topology import BUG_TIERS, TIERS, Tier

# A delay is stretched by up to this share, evenly distributed, so that messages that failed
# together are not retried together. A burst in the 15 s tier is spread over 7.5 s.
JITTER: Final = 0.5


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How one message is retried.

    delays: seconds before the 2nd, 3rd, … attempt, at least one. The last one repeats.
    max_retries: retries after the first attempt. None: as many as `give_up_after` allows.
    give_up_after: seconds after the first attempt started, beyond which no attempt starts.
    expires_at: epoch seconds after which the message is useless. None: never.
    """

    delays: Sequence[float] = tuple(float(tier.seconds) for tier in TIERS)
    max_retries: int | None = None
    give_up_after: float = 86_400.0
    expires_at: float | None = None


# For queues whose handlers never retry on purpose, so only a bug is retried. A transient one passes
# within seconds. A permanent one costs about 13 attempts and 47 trips through the broker, because
# the jitter of the 1m tier is waited out in hops of 5s. Redriving retries the dead letters.
BUG_POLICY: Final = RetryPolicy(
    delays=tuple(float(tier.seconds) for tier in BUG_TIERS), give_up_after=900.0
)


@dataclass(frozen=True, slots=True)
class Retry:
    """Wait in `tier`, then in shorter ones until `not_before` (epoch seconds)."""

    tier: Tier
    not_before: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No more attempts. The reason is for the dead letter.

    expired: the message itself has expired, rather than exhausted its retries.
    """

    reason: str
    expired: bool = False


def decide(  # noqa: PLR0913 - each is an input of the decision
    policy: RetryPolicy,
    tiers: Sequence[Tier],
    *,
    attempt: int,
    first_at: float,
    now: float,
    error: TransientError,
    chance: float,
) -> Retry | GiveUp:
    """Decide how to continue after attempt number `attempt` (1 is the first) has failed at `now`.

    `chance` is a random number in [0, 1). The wait is at least as long as the policy's delay and
    the error's `retry_after`, up to the longest of the queue's tiers. If the first tier of this
    length is more than twice as long as `retry_after`, the message waits in several shorter ones.
    """
    if policy.max_retries is not None and attempt > policy.max_retries:
        return GiveUp(f"gave up after {attempts_text(attempt)}: {error}")
    index = min(attempt, len(policy.delays)) - 1
    tier = first_tier(max(policy.delays[index], error.retry_after), tiers)
    delay = float(tier.seconds)
    if policy.delays[index] < error.retry_after < delay / 2:
        delay = error.retry_after
        tier = next_hop(delay, 0.0, tiers) or tier
    not_before = now + delay * (1 + JITTER * chance)
    if policy.expires_at is not None and not_before >= policy.expires_at:
        return GiveUp(f"expired after {attempts_text(attempt)}: {error}", expired=True)
    if not_before > first_at + policy.give_up_after:
        return GiveUp(
            f"gave up after {attempts_text(attempt)} in {policy.give_up_after:.0f} s: {error}"
        )
    return Retry(tier, not_before)


def attempts_text(number: int) -> str:
    """Return the number of attempts in words: "1 attempt", "2 attempts"."""
    return "1 attempt" if number == 1 else f"{number} attempts"


def defer(
    policy: RetryPolicy,
    tiers: Sequence[Tier],
    *,
    first_at: float,
    now: float,
    error: DeferredError,
) -> Tier | GiveUp:
    """Return the tier for a message without an attempt, or give up at the policy's limits."""
    tier = first_tier(error.delay, tiers)
    if policy.expires_at is not None and now + tier.seconds >= policy.expires_at:
        return GiveUp(f"expired while waiting: {error}", expired=True)
    if now + tier.seconds > first_at + policy.give_up_after:
        return GiveUp(f"gave up after {policy.give_up_after:.0f} s of waiting: {error}")
    return tier


def first_tier(delay: float, tiers: Sequence[Tier] = TIERS) -> Tier:
    """Return the shortest tier of at least `delay` seconds, or else the longest tier."""
    return next((tier for tier in tiers if tier.seconds >= delay), tiers[-1])


def next_hop(remaining: float, chance: float, tiers: Sequence[Tier] = TIERS) -> Tier | None:
    """Return the tier to wait in while `remaining` seconds are left, or None for an attempt now.

    This is the longest tier that does not overshoot. A rest below the shortest tier is waited out
    in that tier with a probability equal to its share, so the mean delay is exact. `chance` is a
    random number in [0, 1).
    """
    fitting = [tier for tier in tiers if tier.seconds <= remaining]
    if fitting:
        return fitting[-1]
    return tiers[0] if remaining > chance * tiers[0].seconds else None
