"""A bound on the time that somebody else's expression may take of this process."""

import signal
from types import FrameType
from typing import Final


class TimeLimitExceededError(Exception):
    """The time is over."""


class TimeLimit:
    """Ends a `with` block of Python code after so many seconds of this process's CPU time.

    In the main thread only, where signals are heard; one at a time.

    Raises:
        TimeLimitExceededError: out of the block, wherever it is.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds: Final = seconds

    def __enter__(self) -> None:
        global _armed  # noqa: PLW0603 - a process has one such timer
        if signal.getsignal(signal.SIGVTALRM) is not _ring:
            signal.signal(signal.SIGVTALRM, _ring)
        _armed = self._seconds
        signal.setitimer(signal.ITIMER_VIRTUAL, self._seconds)

    def __exit__(self, *_: object) -> None:
        global _armed  # noqa: PLW0603 - as above
        _armed = None  # first: the signal may be on its way
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


_armed: float | None = None


def _ring(_: int, __: FrameType | None) -> None:
    if _armed is not None:
        raise TimeLimitExceededError(f"takes longer than {_armed:g} s")
