"""Background processes that later commands find again.

A PID in a file is not enough: the process may have ended, and the PID may be in use again. So the
process inherits an open file with an exclusive `flock`. The kernel holds that lock for as long as
the process or one of its children lives. The PID in the file is valid only while the lock is held.
"""

import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import SystemRandom

# Below the ephemeral ports of every system (Linux 32768, macOS 49152). A client that retries a
# closed ephemeral port of its own machine can get that port as its source and connect to itself.
PORTS = range(20_000, 32_000)
CHECKOUT = Path(__file__).parents[2]
# Data, logs and keys of `ringback up`. The tests use another directory.
LOCAL_DIRECTORY = Path(
    os.environ.get("RINGBACK_LOCAL_DIRECTORY", CHECKOUT / ".ringback")
).absolute()
# Reservations of ports, for all checkouts of this user.
PORT_LOCKS = Path(tempfile.gettempdir()) / f"ringback-ports-{os.geteuid()}"
CLEAN_ADVICE = "To delete its data and start again: `python -m deploy.local clean`."
POLL_INTERVAL = 0.02  # seconds
STOP_TIMEOUT = 10.0  # seconds for all threads of a suspended process to stop


class LocalStackError(Exception):
    """The local stack cannot be used. The text says why, and what to do."""


def free_port(taken: Collection[int | None] = ()) -> int:
    """Return a TCP port on 127.0.0.1 that is free now, and none of those that are `taken`."""
    random = SystemRandom()
    ports = [port for port in PORTS if port not in taken]
    for _ in range(200):
        port = random.choice(ports)
        if port_is_free(port):
            return port
    raise LocalStackError(f"Cannot find a free port between {PORTS.start} and {PORTS.stop}.")


def port_is_free(port: int) -> bool:
    """Return whether a server can listen on 127.0.0.1:`port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def reserved_ports() -> Iterator[Callable[[int], int]]:
    """Yield a function that reserves a port: the given one, or another if it is taken.

    Other stacks of this user do not get the port until the context ends. Without reservations, two
    that start at the same time could choose the same free port.
    """
    locks: list[FileLock] = []
    PORT_LOCKS.mkdir(mode=0o700, exist_ok=True)

    def reserve(port: int) -> int:
        while True:
            lock = FileLock(PORT_LOCKS / str(port))
            if lock.acquire() is not None:
                locks.append(lock)
                if port_is_free(port):
                    return port
            port = free_port()

    try:
        yield reserve
    finally:
        for lock in locks:
            lock.release()


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll until `condition` holds, for at most `seconds`; return whether it held."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL)
    return True


def failure_lines(log: Path) -> str:
    """Return 20 lines of a log from the first error on, or the last 20.

    Erlang writes the cause first, and then a hundred lines of crash reports.
    """
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    first = next((n for n, line in enumerate(lines) if "[error]" in line), len(lines) - 20)
    return "\n".join(lines[max(first, 0) :][:20]) or "(empty)"


class FileLock:
    """An exclusive lock that ends with the last process that holds it, and that process's PID."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def acquire(self) -> int | None:
        """Take the lock and return its descriptor, for a child; None if another process has it."""
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                os.close(file)
                # `holder` of another process shares the lock for a moment. That is no holder.
                if self.holder() is not None:
                    return None
        os.ftruncate(file, 0)
        self._file = file
        return file

    def write(self, pid: int) -> None:
        """Write the PID of the holder. Call `acquire` first."""
        assert self._file is not None, "acquire the lock first"  # noqa: S101 - a contract of this class
        os.pwrite(self._file, str(pid).encode(), 0)

    def release(self) -> None:
        """Release the lock. A child that inherited the descriptor still holds it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def holder(self) -> int | None:
        """Return the PID of the holder, 0 before it is written, or None if the lock is free."""
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(os.read(file, 20) or b"0")
        finally:
            os.close(file)
        return None


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the lock of this file for as long as the context lasts; wait for it first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Daemon:
    """A background process in its own session, identified by its lock file."""

    def __init__(self, lock: Path, log: Path) -> None:
        self.log = log
        self._lock = FileLock(lock)
        self._stopping = lock.with_suffix(".stopping")  # exists from `stop` to the next `start`
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Return its PID while it or one of its children lives, otherwise None."""
        holder = self._lock.holder()
        if holder is None and self._child is not None:
            self._child.wait()  # its files are closed, so it is ending
            self._child = None
        return holder

    def start(
        self, argv: Sequence[str], *, env: Mapping[str, str], user: pwd.struct_passwd | None = None
    ) -> None:
        """Start `argv`, as `user` if given. Its output replaces the log.

        Raises:
            LocalStackError: it runs already, or cannot be executed.
        """
        held = self._lock.acquire()
        if held is None:
            raise LocalStackError(f"Cannot start {argv[0]}: it runs already (PID {self.pid}).")
        try:
            with self.log.open("wb") as log:
                self._child = subprocess.Popen(
                    argv,
                    env=dict(env),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C must not reach it
                    pass_fds=(held,),
                    cwd="/",
                    user=user.pw_uid if user else None,
                    group=user.pw_gid if user else None,
                    extra_groups=[] if user else None,
                )
            self._lock.write(self._child.pid)
            self._stopping.unlink(missing_ok=True)
        except OSError as error:
            raise LocalStackError(f"Cannot start {argv[0]}: {error}.") from error
        finally:
            self._lock.release()

    def send_signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to it, or to its process group, if it runs."""
        pid = self.pid
        if pid:
            with suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(pid, number)

    def suspend(self) -> None:
        """Send SIGSTOP, and wait until all its threads have stopped.

        The kernel stops the other threads only after one of them has received the signal. On a busy
        machine, they run on for tens of milliseconds.
        """
        self.send_signal(signal.SIGSTOP)
        if pid := self.pid:
            wait_until(lambda: _all_stopped(pid), STOP_TIMEOUT)

    def wait_gone(self, seconds: float) -> bool:
        """Wait until it and its children have ended; return whether they did within `seconds`."""
        return wait_until(lambda: self.pid is None, seconds)

    @property
    def stopping(self) -> bool:
        """Return whether it runs, but a `stop` of this or of a killed process has begun."""
        return self.pid is not None and self._stopping.exists()

    def stop(self, number: signal.Signals, seconds: float) -> None:
        """Stop it with a signal, and kill its process group after `seconds`.

        Raises:
            LocalStackError: it did not end (it hangs in the kernel, or belongs to another user).
        """
        if self.pid is None:
            return
        self._stopping.touch()
        self.send_signal(number)
        self.send_signal(signal.SIGCONT)  # a suspended process receives no other signal
        if not self.wait_gone(seconds):
            self.kill()

    def kill(self) -> None:
        """Kill its process group with SIGKILL, and wait until it has ended.

        Raises:
            LocalStackError: it did not end.
        """
        self.send_signal(signal.SIGKILL, group=True)
        if not self.wait_gone(10):
            raise LocalStackError(
                f"Cannot stop PID {self.pid}: it does not end. Its log is {self.log}."
            )


def _all_stopped(pid: int) -> bool:
    """Return whether no thread of a process runs; without Linux's /proc, always true."""
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            state = thread.read_text().rpartition(")")[2].split()[0]
            if state not in "TtZX":  # stopped, traced, or ended
                return False
    return True


def remove(directory: Path) -> None:
    """Kill every daemon below `directory`, and delete the directory."""
    for lock in directory.rglob("*.lock"):
        Daemon(lock, lock.with_suffix(".log")).kill()
    for elsewhere in directory.rglob("elsewhere"):  # data outside, see database.py
        shutil.rmtree(elsewhere.resolve(), ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)
