"""A service in its own process, started by its command."""

import atexit
import json
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from shared.registry import SERVICES
from tests.fakes.waiting import until

# aiohttp reads the certificate authorities of the machine when it is imported. No test needs them,
# and a process starts with a sixth less CPU without them.
NO_AUTHORITIES = {"SSL_CERT_FILE": os.devnull}
LOOPBACK = {"RINGBACK_CALLBACK_ALLOWED_NETWORKS": "127.0.0.0/8"}
RUN_CALLBACK = ("-m", "services", "run", "callback", "--metrics-port", "0")
# A start takes one second on an idle machine of two cores.
START_SECONDS = 60.0

# Processes are forks of one that has imported all services: the imports take two thirds of a start,
# and the tests start hundreds.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([f"{service.module}.app" for service in SERVICES.values()])


def _run(
    arguments: Sequence[str], environment: Mapping[str, str], directory: Path, log: Path
) -> None:
    """Become what `python ARGUMENTS` would be, in this directory and with this log."""
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if "PYTHONPATH" in environment:  # it is for other modules than those that are imported here
        os.execve(sys.executable, (sys.executable, *arguments), environment)  # noqa: S606
    option, program, *sys.argv[1:] = arguments
    try:
        if option == "-c":
            exec(program, {"__name__": "__main__"})  # noqa: S102 - the program is a constant of a test
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    finally:
        # A process of multiprocessing ends without them. One of them flushes the log.
        atexit._run_exitfuncs()  # noqa: SLF001


class Service:
    """A running service. Its log is a file, so it never blocks on a reader."""

    def __init__(
        self,
        directory: Path,
        amqp_url: str,
        settings: Mapping[str, str] | None = None,
        arguments: Sequence[str] = RUN_CALLBACK,
    ) -> None:
        """Start it in `directory` with only these settings."""
        self.log = directory / f"service-{uuid4().hex[:8]}.log"
        self._lines: list[dict[str, Any]] = []
        self._read_up_to = 0
        environment = {
            "PATH": os.environ["PATH"],
            "RINGBACK_AMQP_URL": amqp_url,
            **NO_AUTHORITIES,
            **LOOPBACK,
            **(settings or {}),
        }
        self.log.touch()
        self.process = _FORKS.Process(
            target=_run, args=(tuple(arguments), environment, directory, self.log)
        )
        self.process.start()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Return its log lines so far. Every line must be one JSON object."""
        with self.log.open("rb") as log:
            log.seek(self._read_up_to)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._read_up_to += len(line)
                self._lines.append(json.loads(line))
        return self._lines

    @property
    def output(self) -> str:
        """Return its whole output."""
        return self.log.read_text()

    def logged(self, message: str, **context: Any) -> list[dict[str, Any]]:
        """Return the log lines with this text and these fields."""
        return [
            line
            for line in self.lines
            if message in line["message"] and context.items() <= line.items()
        ]

    async def port(self) -> int:
        """Wait for its metrics port and return it."""
        await until(lambda: self.exited() or self.logged("metrics on port"), START_SECONDS)
        assert self.logged("metrics on port"), self.output
        return int(self.logged("metrics on port")[-1]["port"])

    async def ready(self, within: float = START_SECONDS) -> "Service":
        """Wait until /readyz returns 200."""
        try:
            await until(self.is_ready, within)
        except AssertionError as error:
            raise AssertionError(f"{error}: {await self.parts()}\n{self.output[-4000:]}") from None
        return self

    async def is_ready(self) -> bool:
        assert not self.exited(), self.output
        return (await self.get("/readyz"))[0] == 200

    async def get(self, path: str) -> tuple[int, str]:
        """Request a path of its HTTP server; return status and text."""
        url = f"http://127.0.0.1:{await self.port()}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()

    async def parts(self) -> dict[str, str]:
        """Return the state of each part in /readyz."""
        parts: dict[str, str] = json.loads((await self.get("/readyz"))[1])["parts"]
        return parts

    async def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with these labels, or 0."""
        text = (await self.get("/metrics"))[1]
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        return sum(
            s.value for s in samples if s.name == name and labels.items() <= s.labels.items()
        )

    async def metric_reaches(self, value: float, name: str, **labels: str) -> float:
        """Wait until the sum of the samples with these labels is at least `value`; return it.

        A service can count something after others see its effect.
        """
        sums: list[float] = []

        async def reached() -> bool:
            sums.append(await self.metric(name, **labels))
            return sums[-1] >= value

        await until(reached)
        return sums[-1]

    def exited(self) -> bool:
        return not self.process.is_alive()

    async def idle(self) -> None:
        """Wait until it waits itself, for responses for example.

        If it was suspended between a check and the write of a request, the request would leave
        when it continues.
        """
        waits = ""

        def is_idle() -> bool:
            nonlocal waits
            status = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
            before, waits = waits, next(each for each in status if each.startswith("voluntary"))
            return before == waits

        await until(is_idle)

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.process.kill()
        self.process.join()

    async def exit_code(self, within: float = START_SECONDS) -> int:
        """Wait until it ends by itself, and return its exit code."""
        try:
            await until(self.exited, within)
        except AssertionError as error:
            raise AssertionError(f"{error}; its log:\n{self.output}") from None
        assert self.process.exitcode is not None
        return self.process.exitcode


@contextmanager
def running(
    directory: Path,
    amqp_url: str,
    settings: Mapping[str, str] | None = None,
    arguments: Sequence[str] = RUN_CALLBACK,
) -> Iterator[Service]:
    """Run a service for as long as the context lasts. An exception shows its log."""
    service = Service(directory, amqp_url, settings, arguments)
    try:
        yield service
    except BaseException:
        print(f"{time.strftime('%X')} the end of the service's log:\n{service.output[-6000:]}")  # noqa: T201 - pytest shows it with the failure
        raise
    finally:
        service.kill()
