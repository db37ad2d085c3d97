"""Servers that end with the process that uses them, even if it is killed with SIGKILL.

`python -m deploy.local.watchdog DIRECTORY` removes the directory when its standard input ends. The
process that uses the directory holds the other end of that pipe, which the kernel closes.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local.daemon import CHECKOUT, FileLock, one_at_a_time, remove

THROWAWAYS = CHECKOUT / ".ringback" / "throwaway"


@contextmanager
def throwaway(name: str) -> Iterator[Path]:
    """Yield a directory for servers. It is removed with this context or this process."""
    directory = THROWAWAYS / f"{name}-{os.getpid()}"
    lock = FileLock(directory / "in-use")
    # Nobody removes the directory between its creation and the lock.
    with one_at_a_time(THROWAWAYS.with_suffix(".lock")):
        _remove_abandoned()
        directory.mkdir(parents=True)
        lock.acquire()
    argv = [sys.executable, "-m", "deploy.local.watchdog", str(directory)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True, cwd=CHECKOUT):
        yield directory
    lock.release()


def remove_abandoned() -> None:
    """Remove directories whose process and watchdog both ended, for example in a power failure."""
    with one_at_a_time(THROWAWAYS.with_suffix(".lock")):
        _remove_abandoned()


def _remove_abandoned() -> None:
    for directory in THROWAWAYS.glob("*"):
        if FileLock(directory / "in-use").holder() is None:
            remove(directory)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while os.read(0, 1):
        pass
    remove(Path(sys.argv[1]))
