"""The rate limit of each client: pure bookkeeping, without a clock."""

from typing import Final

# Clients at which those that have no recent requests are forgotten.
MAX_CLIENTS: Final = 10_000


class RateLimiter:
    """Allows each client this number of requests in `seconds`, and at most that many at once."""

    def __init__(self, requests: float, seconds: float = 1.0) -> None:
        self._interval = seconds / requests
        self._tolerance = max(seconds - self._interval, 0.0)
        self._forget_at = MAX_CLIENTS
        # When all earlier requests of a client are paid for (the generic cell rate algorithm).
        self._paid_at: dict[str, float] = {}

    def delay(self, client_id: str, now: float) -> float:
        """Return 0.0 and count a request, or return the seconds until one is allowed."""
        paid_at = max(self._paid_at.get(client_id, now), now)
        delay = paid_at - now - self._tolerance
        if delay > 0:
            return delay
        if len(self._paid_at) >= self._forget_at and client_id not in self._paid_at:
            self._paid_at = {name: at for name, at in self._paid_at.items() if at > now}
            # If most clients are active, the next search for idle ones comes much later.
            self._forget_at = max(MAX_CLIENTS, 2 * len(self._paid_at))
        self._paid_at[client_id] = paid_at + self._interval
        return 0.0
