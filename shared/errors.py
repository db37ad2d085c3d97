"""The errors that handlers raise. The consumer turns each into a broker action.

Expected results are values, not exceptions. docs/architecture.md has the table of actions.
"""


class RingbackError(Exception):
    """An error that Ringback raises on purpose. Its text is safe to log: it contains no secret."""


class ContractViolationError(RingbackError):
    """A message violates its contract: dead-lettered at once, with the reason."""


class PermanentError(RingbackError):
    """The work can never succeed: dead-lettered at once, with the reason."""


class ExpiredError(PermanentError):
    """The work is useless: its time has expired.

    `retry_after` is that of its last attempt, for an owner that repeats the work.
    """

    def __init__(self, reason: str, *, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class TransientError(RingbackError):
    """The work failed, but can succeed later: retried through a tier, counted as an attempt.

    `retry_after` is the minimum delay in seconds, or 0 if only the policy decides.
    """

    def __init__(self, reason: str, *, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class DeferredError(RingbackError):
    """No attempt was made: deferred to a tier of at least `delay` seconds, without counting one.

    `ages`: whether the time in the tier counts towards the time after which a message is given up.
    """

    def __init__(self, reason: str, *, delay: float, ages: bool = True) -> None:
        super().__init__(reason)
        self.delay = delay
        self.ages = ages


class InfrastructureError(RingbackError):
    """A store or the broker is unavailable: retried until it recovers, not counted.

    `effect_unknown` is false if the work is known to have had no effect.
    """

    def __init__(self, reason: str, *, effect_unknown: bool = True) -> None:
        super().__init__(reason)
        self.effect_unknown = effect_unknown
