"""`docker compose up` on a real engine, where one is reachable.

The project has its own name, ports, networks and volumes, so it does not touch a running one.
"""

import asyncio
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, run

import aiohttp
import pytest
import pytest_asyncio

from deploy.local.daemon import reserved_ports
from tests.fakes.command import ROOT
from tests.fakes.waiting import until

PORTS = (
    "GATEWAY_PORT",
    "SANDBOX_PORT",
    "RABBITMQ_PORT",
    "RABBITMQ_MANAGEMENT_PORT",
    "CALLBACK_METRICS_PORT",
    "SCHEDULER_METRICS_PORT",
    "GATEWAY_METRICS_PORT",
    "INGESTION_METRICS_PORT",
    "MAILINGS_METRICS_PORT",
    "DELIVERY_METRICS_PORT",
)
EVERYTHING_IS_RUNNING = "Everything is running."


def engine_is_reachable() -> bool:
    """Return whether a Docker engine responds and the command has Compose."""
    docker = shutil.which("docker")
    return docker is not None and all(
        run([docker, *arguments], stdout=DEVNULL, stderr=DEVNULL, check=False).returncode == 0
        for arguments in (["compose", "version"], ["info"])
    )


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not engine_is_reachable(), reason="no Docker engine with Compose"),
]


class Project:
    """A Compose project of its own in a copy of the checkout."""

    def __init__(self, checkout: Path, ports: dict[str, str]) -> None:
        self.checkout = checkout
        self.ports = ports
        inherited = {name: value for name, value in os.environ.items() if "RINGBACK" not in name}
        subnet = f"10.203.{os.getpid() % 250}.0/24"
        self.environment = inherited | ports | {"HOOKS_SUBNET": subnet}

    async def compose(self, *arguments: str, stdin: str = "", **settings: str) -> str:
        """Run a command of Compose to its end; return its output."""
        process = await self._start(*arguments, **settings)
        out, _ = await process.communicate(stdin.encode())
        assert process.returncode == 0, out.decode()
        return out.decode()

    @asynccontextmanager
    async def up(self, **settings: str) -> AsyncIterator[tuple[str, int]]:
        """Run `docker compose up`, and press Ctrl-C at the end.

        Yield its output until the demonstration has ended, and the demonstration's exit code.
        """
        process = await self._start("--ansi=never", "up", **settings)
        assert process.stdout
        output = ""
        try:
            while "demo-1 exited with code" not in output:
                line = (await process.stdout.readline()).decode()
                assert line, output
                output += line
            code = re.search(r"demo-1 exited with code (\d+)", output)
            assert code
            yield output, int(code[1])
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            await process.communicate()

    async def images(self) -> set[str]:
        """Return the ids of the images that Ringback's containers run."""
        listed = json.loads(await self.compose("images", "--format=json"))
        return {each["ID"] for each in listed if each["Repository"] == "ringback"}

    async def _start(self, *arguments: str, **settings: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *("docker", "compose", "--project-name", f"ringback-test-{os.getpid()}", *arguments),
            cwd=self.checkout,
            env=self.environment | settings,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=2**20,
        )


@contextmanager
def copied_checkout(directory: Path) -> Iterator[Path]:
    """Yield a copy of the files that Docker gets."""
    for name in ("services", "shared", "deploy"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, directory / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, directory)
    yield directory


@pytest_asyncio.fixture
async def project(tmp_path: Path) -> AsyncIterator[Project]:
    with ExitStack() as stack:
        checkout = stack.enter_context(copied_checkout(tmp_path))
        reserve = stack.enter_context(reserved_ports())
        project = Project(checkout, {name: str(reserve(8080)) for name in PORTS})
        try:
            yield project
        finally:
            await project.compose("down", "--volumes", "--timeout=5")


async def status(url: str) -> int:
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        return response.status


def count_lines(output: str, text: str) -> int:
    return sum(text in line for line in output.splitlines())


async def test_m15_finding_d1_docker_compose_up_shows_the_demonstration_once(
    project: Project,
) -> None:
    """M15, finding D1: `up` shows every part with links that open. A later `up` shows none."""
    async with project.up() as (output, code):
        assert code == 0, output
        delivered = "delivered: the receiver responded with 200; signatures verified"
        assert f"1  attempt 1 {delivered}" in output
        assert f"2  attempt 3 {delivered}" in output
        assert "3  dead-lettered to callbacks.dead: 169.254.169.254 is not a public" in output
        assert re.search(r"4  delivered \d+ ms after it was due; signatures verified", output)
        assert re.search(r"5  “Welcome to Ringback” sent to \S+@sandbox\.invalid", output)
        assert re.search(r"6  \d+ of \d+ users got an e-mail", output)
        assert re.search(r"7  posting \S+: “Ringback: your code is 1234.*” sent", output)
        assert re.search(r"8  posting \S+: expired, nothing was sent", output)
        assert re.search(r"14 \S+/hooks/moved-\w+ received callback_deprecated", output)
        assert "16 active again: one replay sent the 3 messages; signatures verified" in output
        assert EVERYTHING_IS_RUNNING in output
        assert count_lines(output, "message sent") < 100

        links = set(re.findall(r"http://127.0.0.1[^\s,;]+", output))
        assert len(links) >= 7
        assert {link: await status(link) for link in links} == dict.fromkeys(links, 200)
        assert "http://sandbox:8090/mails" not in output
        assert "http://sandbox:8090/sms" not in output
        mails = f"http://127.0.0.1:{project.ports['SANDBOX_PORT']}/api/mails"
        async with aiohttp.ClientSession() as http, http.get(mails) as response:
            assert "sandbox:8090" not in await response.text()

    async with project.up(RINGBACK_SMTP_URL="smtp://mail.invalid") as (again, code):
        assert code == 0, again
        assert "was shown before" in again
        assert "attempt 1" not in again
        assert EVERYTHING_IS_RUNNING in again


async def test_finding_c16_compose_sends_no_e_mail_of_the_demonstration_to_a_real_mail_server(
    project: Project,
) -> None:
    """Finding C16: with a mail server of its own, the demonstration has no postings."""
    async with project.up(RINGBACK_SMTP_URL="smtp://mail.invalid") as (output, code):
        assert code == 0, output
        assert "4  delivered" in output
        assert "is not shown: RINGBACK_SMTP_URL is set" in output
        queues = await project.compose(
            *("exec", "-T", "rabbitmq", "rabbitmqctl", "--quiet", "list_queues", "name", "messages")
        )
        waiting = {line.split()[0]: line.split()[1] for line in queues.splitlines() if line.strip()}
        assert waiting["messages.email"] == waiting["messages.email.urgent"] == "0"


async def test_finding_d1_callbacks_reach_receivers_only_and_a_new_source_a_new_image(
    project: Project,
) -> None:
    """Finding D1: networks, `--scale` with a range of ports, and a change of the source."""
    scaled = ("up", "--detach", "--wait", "--scale=callback=3")
    ports = {"CALLBACK_METRICS_PORT": "9311-9313"}
    await project.compose(*scaled, **ports)
    running = await project.compose("ps", "--quiet", "callback", **ports)
    assert len(running.split()) == 3

    execute = ("exec", "-T", "callback", "ringback")
    to_the_broker = {"target_url": "http://rabbitmq:15672/", "hmac_secret": "s", "payload": {}}
    sent = await project.compose(*execute, "send", "SendCallback", stdin=json.dumps(to_the_broker))
    letter = await until(partial(dead_letter, project, sent.split()[-1]), within=60)
    assert "not a public address" in letter

    doctor = await project.compose(*execute, "doctor")
    version = await project.compose("exec", "-T", "postgres", "postgres", "--version")
    number = re.search(r"[0-9.]+", version)
    assert number
    assert f"PostgreSQL {number[0]} at" in doctor

    before = await project.images()
    with (project.checkout / "services/__main__.py").open("a") as source:
        source.write("\n# changed\n")
    await project.compose(*scaled, **ports)
    after = await project.images()
    assert len(before) == len(after) == 1
    assert before != after


async def dead_letter(project: Project, identity: str) -> str | None:
    """Return the line of this dead letter, or None."""
    command = ("exec", "-T", "callback", "ringback", "dead", "list", "callbacks")
    lines = (await project.compose(*command)).splitlines()
    return next((line for line in lines if identity in line), None)
