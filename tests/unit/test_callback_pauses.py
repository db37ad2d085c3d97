"""N8: callbacks to a paused target are deferred without an attempt, and do not age."""

import pytest

from services.callback.pauses import Pauses
from shared.clock import SystemClock
from shared.contracts.controls import PausedTargets
from shared.errors import DeferredError
from shared.resilience.lanes import MAX_DEFERRAL

A, B = "https://a.example:443", "https://b.example:443"


def paused(version: int, *targets: str) -> PausedTargets:
    return PausedTargets(version=version, targets=list(targets))


def test_n8_only_callbacks_of_a_paused_target_are_deferred() -> None:
    pauses = Pauses(SystemClock())
    pauses.check(A, 0)
    pauses.apply(paused(1, A))
    pauses.check(B, 0)
    with pytest.raises(DeferredError, match="the target is paused") as deferred:
        pauses.check(A, 0)
    assert not deferred.value.ages
    pauses.apply(paused(2))
    pauses.check(A, 0)


def test_n8_deferrals_grow_up_to_five_minutes() -> None:
    pauses = Pauses(SystemClock())
    pauses.apply(paused(1, A))
    delays = []
    for deferrals in (0, 1, 2, 8, 9, 1000):
        with pytest.raises(DeferredError) as deferred:
            pauses.check(A, deferrals)
        delays.append(deferred.value.delay)
    assert delays == [1, 2, 4, 256, MAX_DEFERRAL, MAX_DEFERRAL]


def test_n8_an_older_list_changes_nothing() -> None:
    pauses = Pauses(SystemClock())
    pauses.apply(paused(2, A))
    pauses.apply(paused(1))
    with pytest.raises(DeferredError):
        pauses.check(A, 0)


def test_n8_a_version_of_the_far_future_does_not_freeze_the_pauses() -> None:
    clock = SystemClock()
    pauses = Pauses(clock)
    now = int(clock.now() * 1_000_000)
    for version in (1 << 62, 10**100, now + 2 * 3600 * 1_000_000):
        assert not pauses.apply(paused(version))
    assert pauses.apply(paused(now, A))
    with pytest.raises(DeferredError):
        pauses.check(A, 0)
