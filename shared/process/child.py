"""A service in a child process: it tells its parent how it is, and ends when its parent is gone.

Parent and child share a socket pair. The child writes its health on it, a JSON line per change;
when the parent ends in whatever way, kill -9 included, the child reads the end and stops.
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
    """A running child process. `fault` is why it is not ready, None while it is."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid
        self.fault: str | None = STARTING

    async def wait(self) -> int:
        """Its exit code, once it has ended; minus the signal that killed it."""
        return await self._process.wait()

    def terminate(self) -> None:
        """Tell it to drain and stop; told again, it stops at once."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    async def end(self, grace: float) -> None:
        """Tell it to stop, and kill it after `grace` seconds."""
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
    """A child process for as long as the context lasts; then it has `grace` seconds to end.

    `argv` gets the option --parent-fd, which belongs to `reporting`. `changed` hears of every
    change of `fault`. Without `output` the child writes where we do. It is in a session of its own,
    so that Ctrl-C reaches it only through us.
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
    listening = asyncio.create_task(_listen(reader, child, changed))
    try:
        yield child
    finally:
        await child.end(grace)
        listening.cancel()
        writer.close()


async def _listen(
    reader: asyncio.StreamReader, child: Child, changed: Callable[[Child], None]
) -> None:
    while line := await reader.readline():
        child.fault = json.loads(line)["fault"]
        changed(child)


def reporting(start: Start, parent_fd: int) -> Start:
    """Let the service that `start` begins tell its parent how it is, and end with it."""

    async def begin(process: Process) -> None:
        channel = socket.socket(fileno=parent_fd)
        channel.setblocking(False)  # noqa: FBT003 - the socket's own signature
        loop = asyncio.get_running_loop()
        told: list[str | None] = [STARTING]

        def tell() -> None:
            fault = process.health.fault
            if fault != told[0]:
                told[0] = fault
                with suppress(OSError):  # a parent that is gone is noticed below
                    channel.send(json.dumps({"fault": fault}).encode() + b"\n")

        def gone() -> None:
            loop.remove_reader(channel)
            if process.stopping.is_set():
                os._exit(128 + signal.SIGTERM)  # as on a second signal
            logger.warning("the parent process is gone: stopping")
            process.stopping.set()

        await start(process)
        process.stack.callback(channel.close)
        loop.add_reader(channel, gone)
        process.stack.callback(loop.remove_reader, channel)
        process.health.on_change = tell
        tell()

    return begin
