"""The one tree of errors that handlers raise; the consumer turns each into a broker action.

Expected results are values, not exceptions. The table of actions is in docs/architecture.md.
"""


class RingbackError(Exception):
    """Any error Ringback raises on purpose. Its text is safe to log: it never holds a secret."""


class ContractViolationError(RingbackError):
    """A message that does not keep its contract: to the dead queue at once, with this reason."""


class PermanentError(RingbackError):
    """The work can never succeed: to the dead queue at once, with this reason."""


class ExpiredError(PermanentError):
    """The work has lost its meaning: its time is over."""


class TransientError(RingbackError):
    """The work failed and may succeed later: to a retry tier, counted as an attempt.

    `retry_after` is the least wanted delay in seconds, 0 where the schedule alone decides.
    """

    def __init__(self, reason: str, *, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class DeferredError(RingbackError):
    """The work was not tried: to a tier of at least `delay` seconds, not counted as an attempt."""

    def __init__(self, reason: str, *, delay: float) -> None:
        super().__init__(reason)
        self.delay = delay


class InfrastructureError(RingbackError):
    """Broker or store is lost: stop taking messages, wait, go on; not counted as an attempt."""
