"""A background process that can be found again after whoever started it is gone.

A PID in a file says little: the process may be dead and its number given to another. So the
process inherits an open file with an exclusive `flock`, and the kernel keeps that lock exactly
as long as the process or one of its children lives. A held lock makes the PID beside it
trustworthy; a free one makes the file stale, whatever it says.
"""

import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import SystemRandom

# Below every system's range of ephemeral ports (Linux 32768, macOS 49152): there, a client that
# keeps knocking at a closed port of its own machine is one day given that very port and connects
# to itself.
PORTS = range(20_000, 32_000)
CHECKOUT = Path(__file__).parents[2]
START_AFRESH = "If its data may go, `python -m deploy.local clean` starts afresh."
POLL = 0.02  # seconds between two looks at something that gives no signal


class LocalStackError(Exception):
    """Something on this machine stands in the way; the text says what, and how to mend it."""


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on now."""
    random = SystemRandom()
    for _ in range(200):
        port = random.choice(PORTS)
        if port_is_free(port):
            return port
    raise LocalStackError(f"no free port found between {PORTS.start} and {PORTS.stop}")


def port_is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:`port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll until `condition` holds; whether it did within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def trouble(log: Path) -> str:
    """What a log says about a failure: 20 lines from the first error on, else its end.

    Erlang names the cause first, and a hundred lines of crash reports follow.
    """
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    first = next((n for n, line in enumerate(lines) if "[error]" in line), len(lines) - 20)
    return "\n".join(lines[max(first, 0) :][:20]) or "(nothing)"


class FileLock:
    """An exclusive lock that ends with its last holder, and the holder's PID beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def acquire(self) -> int | None:
        """Take the lock and return its descriptor, to be inherited; None if another has it."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        os.ftruncate(file, 0)
        self._file = file
        return file

    def write(self, pid: int) -> None:
        """Note who holds it. Only after `acquire`."""
        assert self._file is not None, "acquire the lock first"  # noqa: S101 - states the contract
        os.pwrite(self._file, str(pid).encode(), 0)

    def release(self) -> None:
        """Let go; a child that inherited the descriptor goes on holding the lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def holder(self) -> int | None:
        """The PID of the living holder, 0 if it is not noted yet; None if nobody holds it."""
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


class Daemon:
    """One background process, in a session of its own, known by its lock file."""

    def __init__(self, lock: Path, log: Path) -> None:
        self.log = log
        self._lock = FileLock(lock)
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its PID while it or a child of it lives."""
        holder = self._lock.holder()
        if holder is None and self._child is not None:
            self._child.wait()  # what holds no files any more is about to end: reap it
            self._child = None
        return holder

    def start(
        self, argv: Sequence[str], *, env: Mapping[str, str], user: pwd.struct_passwd | None = None
    ) -> None:
        """Start `argv`, as `user` if given; its output replaces the log.

        Raises:
            LocalStackError: it is running already, or can't be executed.
        """
        held = self._lock.acquire()
        if held is None:
            raise LocalStackError(f"{argv[0]} is running already (PID {self.pid})")
        try:
            with self.log.open("wb") as log:
                self._child = subprocess.Popen(
                    argv,
                    env=dict(env),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C in the terminal is for us, not for it
                    pass_fds=(held,),
                    cwd="/",
                    user=user.pw_uid if user else None,
                    group=user.pw_gid if user else None,
                    extra_groups=[] if user else None,
                )
            self._lock.write(self._child.pid)
        except OSError as error:
            raise LocalStackError(f"{argv[0]} can't be started: {error}") from error
        finally:
            self._lock.release()

    def send_signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to it, or to all of its process group; nothing happens if it is gone."""
        pid = self.pid
        if pid:
            with suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(pid, number)

    def wait_gone(self, seconds: float) -> bool:
        """Wait until it and all its children are gone; whether that came within `seconds`."""
        return wait_until(lambda: self.pid is None, seconds)

    def end(self, number: signal.Signals, seconds: float) -> None:
        """Ask it to end with a signal, wait `seconds`, then kill its whole group.

        Raises:
            LocalStackError: not even that ended it (it hangs in the kernel, or is not ours).
        """
        self.send_signal(number)
        self.send_signal(signal.SIGCONT)  # one that was suspended hears nothing else
        if not self.wait_gone(seconds):
            self.kill()

    def kill(self) -> None:
        """SIGKILL to its process group, then wait until all of it is gone.

        Raises:
            LocalStackError: that did not end it.
        """
        self.send_signal(signal.SIGKILL, group=True)
        if not self.wait_gone(10):
            raise LocalStackError(f"PID {self.pid} does not end; its log is {self.log}")


def remove(directory: Path) -> None:
    """End every daemon below `directory`, however it came there, and delete the directory."""
    for lock in directory.rglob("*.lock"):
        Daemon(lock, lock.with_suffix(".log")).kill()
    for elsewhere in directory.rglob("elsewhere"):  # data that had to live outside, see database.py
        shutil.rmtree(elsewhere.resolve(), ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)
