"""A log handler that never waits for the reader of its output."""

import logging
import os
import select
import stat
import threading
from collections import deque
from typing import Final

from prometheus_client import Counter

DROPPED: Final = Counter(
    "ringback_log_lines_dropped", "Log lines that were dropped because nothing read the log."
)

# Bytes of lines that wait for the reader: half a minute of 1,000 callbacks a second.
MAX_WAITING: Final = 8 << 20
# Seconds to wait for the reader at exit.
FLUSH_TIMEOUT: Final = 1.0


class NonBlockingHandler(logging.Handler):
    """Writes lines to a file descriptor.

    A pipe is full when its reader has stopped, and a write would then stop the event loop. Such
    lines are written by a thread, which exists only while lines wait. So in the normal case a line
    is written at once, and not lost when the process is killed.
    """

    def __init__(self, fd: int, *, max_waiting: int = MAX_WAITING) -> None:
        super().__init__()
        self._fd = fd
        # A pipe that is ready accepts this much without blocking; a file accepts everything.
        self._chunk = max_waiting if stat.S_ISREG(os.fstat(fd).st_mode) else select.PIPE_BUF
        self._max_waiting = max_waiting
        self._poll = _poll(fd)
        self._mutex = threading.Lock()  # of the attributes below; the thread uses them too
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or leave it to the thread."""
        try:
            line = (self.format(record) + "\n").encode(errors="backslashreplace")
            if self._thread is None:
                line = self._write(line)
            if line:
                self._wait(line)
        except OSError:  # nobody can read the log any more
            DROPPED.inc()
        except Exception:  # noqa: BLE001 - as every handler of logging
            self.handleError(record)

    def flush(self) -> None:
        """Wait until the waiting lines are written, but not for long."""
        thread = self._thread
        if thread is not None:
            thread.join(FLUSH_TIMEOUT)

    def _write(self, line: bytes) -> bytes:
        """Write as much as is possible without blocking, and return the rest."""
        while line and self._poll.poll(0):
            line = line[os.write(self._fd, line[: self._chunk]) :]
        return line

    def _wait(self, line: bytes) -> None:
        with self._mutex:
            if self._size + len(line) > self._max_waiting:
                DROPPED.inc()
                return
            self._waiting.append(line)
            self._size += len(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_waiting, daemon=True)
                self._thread.start()

    def _write_waiting(self) -> None:
        poll = _poll(self._fd)
        while True:
            with self._mutex:
                if not self._waiting:
                    self._thread = None
                    return
                line = self._waiting.popleft()
                self._size -= len(line)
            try:
                while line:
                    poll.poll()
                    line = line[os.write(self._fd, line[: self._chunk]) :]
            except OSError:
                DROPPED.inc()


def _poll(fd: int) -> "select.poll":
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return poll
