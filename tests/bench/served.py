"""A server in a process of its own, so that its CPU is not that of the measured program."""

import multiprocessing
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from typing import Any, TypeAlias

import uvloop

Port: TypeAlias = "Queue[int]"  # not a generic class at run time
Listen = Callable[[Port], Coroutine[Any, Any, None]]


@contextmanager
def served(listen: Listen) -> Iterator[int]:
    """Run `listen`, which reports its port and serves until it is killed. Yield the port."""
    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    process = context.Process(target=_run, args=(listen, port), daemon=True)
    process.start()
    try:
        yield port.get(timeout=60)
    finally:
        process.kill()
        process.join()


def _run(listen: Listen, port: Port) -> None:
    uvloop.run(listen(port))
