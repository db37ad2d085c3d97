"""A limit on the CPU time of untrusted expressions."""

import gc
import signal
from functools import cache
from types import FrameType
from typing import Final

# Seconds of CPU time between two interruptions of a block that goes on.
_REPEAT_INTERVAL: Final = 0.05


class TimeLimitExceededError(Exception):
    """The time limit is exceeded."""


class TimeLimit:
    """Interrupts a `with` block of Python code after some seconds of this process's CPU time.

    Use it only in the main thread, where Python handles signals, and one at a time.

    Raises:
        TimeLimitExceededError: in the block.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds: Final = seconds

    def __enter__(self) -> None:
        global _active_limit  # noqa: PLW0603 - a process has only one such timer
        _install()
        # Garbage collection would count towards the limit of this block, and could be interrupted.
        gc.disable()
        _active_limit = self._seconds
        # It repeats, because Python ignores an exception in a destructor.
        signal.setitimer(signal.ITIMER_VIRTUAL, self._seconds, _REPEAT_INTERVAL)

    def __exit__(self, *_: object) -> None:
        global _active_limit  # noqa: PLW0603 - as above
        _active_limit = None  # before the timer stops, because the signal may be pending
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        gc.enable()


_active_limit: float | None = None


@cache
def _install() -> None:
    """Install the handler once: to look up the current one takes 10 µs."""
    signal.signal(signal.SIGVTALRM, _interrupt)


def _interrupt(_: int, frame: FrameType | None) -> None:
    is_ending = frame is not None and frame.f_code is TimeLimit.__exit__.__code__
    if _active_limit is not None and not is_ending:
        raise TimeLimitExceededError(f"takes longer than {_active_limit:g} s")
