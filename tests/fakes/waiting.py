"""The one way in which tests wait for what gives no signal."""

import asyncio
import time
from collections.abc import Callable
from inspect import isawaitable
from typing import Any


async def until(condition: Callable[[], Any], within: float = 20.0) -> Any:
    """Ask, or await, again and again until the answer is true, and give it.

    Raises:
        AssertionError: that did not come within so many seconds; with the last answer.
    """
    deadline = time.monotonic() + within
    while True:
        answer = condition()
        if isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {within} s; last: {answer!r}"
        await asyncio.sleep(0.02)
