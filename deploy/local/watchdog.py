"""Servers that end with the process that uses them, even when that is killed with -9.

`python -m deploy.local.watchdog DIRECTORY` removes it when its standard input ends. The user of
the directory holds the other end of that pipe, which the kernel closes however the user ends.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local.daemon import CHECKOUT, FileLock, remove

THROWAWAYS = CHECKOUT / ".ringback" / "throwaway"


@contextmanager
def throwaway(name: str) -> Iterator[Path]:
    """A directory for brokers and databases that vanish with this block or this process."""
    remove_abandoned()
    directory = THROWAWAYS / f"{name}-{os.getpid()}"
    directory.mkdir(parents=True)
    lock = FileLock(directory / "in-use")
    lock.acquire()
    argv = [sys.executable, "-m", "deploy.local.watchdog", str(directory)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True, cwd=CHECKOUT):
        yield directory
    lock.release()


def remove_abandoned() -> None:
    """Remove throwaway directories whose user and watchdog both ended, as in a power cut."""
    for directory in THROWAWAYS.glob("*"):
        if FileLock(directory / "in-use").holder() is None:
            remove(directory)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while os.read(0, 1):
        pass
    remove(Path(sys.argv[1]))
