"""`ringback up` in its own process: all services, the sandbox and the demonstration."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.fakes.command import ROOT
from tests.fakes.service import NO_AUTHORITIES

EVERYTHING_IS_RUNNING = "Everything is running."


class Up:
    """A running `ringback up` and its output."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = ""

    async def until(self, text: str, within: float = 120.0) -> str:
        """Read until this text appears; return the whole output."""
        assert self.process.stdout
        async with asyncio.timeout(within):
            while text not in self.output:
                line = await self.process.stdout.readline()
                assert line, f"it ended without {text!r}:\n{self.output}"
                self.output += line.decode()
        return self.output

    async def end(self, number: signal.Signals) -> int:
        """Send a signal; return the exit code."""
        assert self.process.stdout
        self.process.send_signal(number)
        async with asyncio.timeout(60):
            self.output += (await self.process.stdout.read()).decode()
            return await self.process.wait()

    @property
    def children(self) -> list[int]:
        """Return the PIDs of its services."""
        pid = self.process.pid
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(each) for task in tasks for each in task.read_text().split()]

    def service(self, name: str) -> int:
        """Return the PID of a service."""
        for pid in self.children:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"run" in command and name.encode() in command:
                return pid
        raise AssertionError(f"{name} does not run")

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a service."""
        text = Path(f"/proc/{self.service(name)}/environ").read_text()
        return dict(each.split("=", 1) for each in text.split("\0") if each)


def alive(pids: list[int]) -> list[int]:
    """Return the PIDs that still run."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@asynccontextmanager
async def up(*arguments: str, **settings: str) -> AsyncIterator[Up]:
    """Run it for the length of the block. A failure prints its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services", "up"),
        *arguments,
        env={name: os.environ[name] for name in ("PATH", "RINGBACK_LOCAL_DIRECTORY")}
        | NO_AUTHORITIES
        | settings,
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    running = Up(process)
    try:
        yield running
    except BaseException:
        print(running.output)  # noqa: T201 - pytest shows it with the failure
        raise
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
