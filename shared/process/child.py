"""A service in a child process, which reports its health to its parent and ends with it.

Parent and child share a socket pair. The child writes its health, a JSON line for each change. When
the parent ends, even by SIGKILL, the child reads the end of the stream and stops.
"""

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import IO

from shared.process.health import STARTING
from shared.process.run import Process

logger = logging.getLogger(__name__)

Start = Callable[[Process], Awaitable[None]]


class Child:
    """A running child process. `fault` is the reason why it is not ready, or None if it is."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid
        self.fault: str | None = STARTING

    async def wait(self) -> int:
        """Wait until it exits, and return its exit code, or minus the signal that killed it."""
        return await self._process.wait()

    def terminate(self) -> None:
        """Make it drain and stop. A second call makes it stop at once."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    async def stop(self, grace: float) -> None:
        """Make it drain and stop, and kill it after `grace` seconds."""
        if self._process.returncode is not None:
            return
        self.terminate()
        try:
            async with asyncio.timeout(grace):
                await self._process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def running(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    grace: float,
    changed: Callable[[Child], None],
    output: IO[bytes] | None = None,
) -> AsyncIterator[Child]:
    """Run a child process for as long as the context lasts, then stop it within `grace` seconds.

    `argv` gets the option --parent-fd for `reporting`. `changed` is called after every change of
    `fault`. Without `output`, the child writes to the output of the parent. It has its own session,
    so Ctrl-C reaches only the parent.
    """
    ours, theirs = socket.socketpair()
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            "--parent-fd",
            str(theirs.fileno()),
            env=dict(environment),
            pass_fds=(theirs.fileno(),),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    child = Child(process)
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    reports = asyncio.create_task(_read_reports(reader, child, changed))
    try:
        yield child
    finally:
        await child.stop(grace)
        reports.cancel()
        writer.close()


async def _read_reports(
    reader: asyncio.StreamReader, child: Child, changed: Callable[[Child], None]
) -> None:
    while line := await reader.readline():
        child.fault = json.loads(line)["fault"]
        changed(child)


def reporting(start: Start, parent_fd: int) -> Start:
    """Return a `start` that also reports the health to the parent and stops when it is gone."""

    async def start_and_report(process: Process) -> None:
        channel = socket.socket(fileno=parent_fd)
        channel.setblocking(False)  # noqa: FBT003 - the socket's own signature
        loop = asyncio.get_running_loop()
        reported: str | None = STARTING

        def report() -> None:
            nonlocal reported
            if process.health.fault != reported:
                reported = process.health.fault
                with suppress(OSError):  # the parent is gone, which `parent_gone` handles
                    channel.send(json.dumps({"fault": reported}).encode() + b"\n")

        def parent_gone() -> None:
            loop.remove_reader(channel)
            if process.stopping.is_set():
                os._exit(128 + signal.SIGTERM)  # as on a second signal
            logger.warning("parent process ended: stopping")
            process.stopping.set()

        await start(process)
        process.stack.callback(channel.close)
        loop.add_reader(channel, parent_gone)
        process.stack.callback(loop.remove_reader, channel)
        process.health.on_change = report
        report()

    return start_and_report
