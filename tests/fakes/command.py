"""The command `ringback` in its own process."""

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.service import NO_AUTHORITIES

ROOT = Path(__file__).parents[2]
# The second variable hides the servers of a `ringback up` in this checkout.
INHERITED = ("PATH", "RINGBACK_LOCAL_DIRECTORY")


@dataclass(frozen=True)
class Output:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


async def start(
    *arguments: str, amqp_url: str | None, **settings: str
) -> asyncio.subprocess.Process:
    """Start a command with only these settings."""
    broker = {} if amqp_url is None else {"RINGBACK_AMQP_URL": amqp_url}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services"),
        *arguments,
        env={name: os.environ[name] for name in INHERITED} | NO_AUTHORITIES | broker | settings,
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ringback(
    *arguments: str, amqp_url: str | None, stdin: str | bytes = b"", **settings: str
) -> Output:
    """Run a command to its end."""
    process = await start(*arguments, amqp_url=amqp_url, **settings)
    data = stdin.encode() if isinstance(stdin, str) else stdin
    async with asyncio.timeout(60):
        out, err = await process.communicate(data)
    assert process.returncode is not None
    return Output(process.returncode, out.decode(), err.decode())
