"""The rate limit of the HTTP API."""

from hypothesis import given
from hypothesis import strategies as st

from shared.http.rate_limit import MAX_CLIENTS, RateLimiter


def test_a_second_s_worth_of_requests_is_allowed_at_once_then_one_per_interval() -> None:
    limiter = RateLimiter(10)
    assert [limiter.delay("shop", 100.0) for _ in range(10)] == [0.0] * 10
    assert 0.0 < limiter.delay("shop", 100.0) <= 0.1
    assert limiter.delay("other", 100.0) == 0.0
    assert limiter.delay("shop", 100.11) == 0.0
    assert limiter.delay("shop", 100.11) > 0.0


def test_a_rate_below_one_allows_one_request_per_interval() -> None:
    limiter = RateLimiter(0.1)
    assert limiter.delay("", 0.0) == 0.0
    assert limiter.delay("", 0.0) == 10.0
    assert limiter.delay("", 10.0) == 0.0


@given(st.lists(st.floats(0, 3), min_size=1), st.sampled_from([0.5, 1, 3, 50]))
def test_no_second_has_more_than_twice_the_rate_and_waiting_always_helps(
    times: list[float], rate: float
) -> None:
    limiter = RateLimiter(rate)
    allowed = []
    for now in sorted(times):
        delay = limiter.delay("shop", now)
        if delay == 0.0:
            allowed.append(now)
    for start in allowed:
        within = [at for at in allowed if start <= at < start + 1]
        assert len(within) <= max(2 * rate, 1) + 1
    last = max(times)
    if (delay := limiter.delay("shop", last)) > 0.0:
        assert limiter.delay("shop", last + delay + 1e-6) == 0.0


def test_a_limit_can_be_for_a_minute() -> None:
    limiter = RateLimiter(3, 60.0)
    assert [limiter.delay("ann", 0.0) for _ in range(3)] == [0.0] * 3
    assert limiter.delay("ann", 0.0) == 20.0
    assert limiter.delay("ann", 20.0) == 0.0


def test_many_active_clients_are_searched_for_idle_ones_rarely() -> None:
    limiter = RateLimiter(1)
    searches, clients = 0, limiter._paid_at  # noqa: SLF001
    for number in range(8 * MAX_CLIENTS):
        limiter.delay(f"client-{number}", 0.0)
        if limiter._paid_at is not clients:  # noqa: SLF001
            searches, clients = searches + 1, limiter._paid_at  # noqa: SLF001
    assert searches == 3
    for number in range(40 * MAX_CLIENTS):
        limiter.delay(f"later-{number}", 10.0 + number)
    assert len(limiter._paid_at) <= MAX_CLIENTS  # noqa: SLF001


def test_idle_clients_are_forgotten() -> None:
    limiter = RateLimiter(1)
    for number in range(3 * MAX_CLIENTS):
        limiter.delay(f"client-{number}", float(number))
    assert len(limiter._paid_at) <= MAX_CLIENTS  # noqa: SLF001
