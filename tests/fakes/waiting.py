"""Waiting in tests for a condition that sends no signal."""

import asyncio
import time
from collections.abc import Callable
from inspect import isawaitable
from typing import Any


async def until(condition: Callable[[], Any], within: float = 180.0) -> Any:
    """Poll the condition until its result is true, and return that result.

    Raises:
        AssertionError: the result stayed false for `within` seconds.
    """
    deadline = time.monotonic() + within
    while True:
        result = condition()
        if isawaitable(result):
            result = await result
        if result:
            return result
        assert time.monotonic() < deadline, f"not true within {within} s; last: {result!r}"
        await asyncio.sleep(0.02)
