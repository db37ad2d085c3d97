"""`ringback up` as a newcomer sees it: callbacks, e-mails, an SMS; and all is gone after."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from deploy.local.install import Installation
from shared.registry import SERVICES
from shared.security.encryption import SecretCipher
from shared.security.tickets import TicketVerifier
from tests.fakes.command import ROOT, ringback
from tests.fakes.waiting import until

EVERYTHING_RUNS = "Everything runs."


class Up:
    """A running `ringback up` and what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""

    async def until(self, text: str, within: float = 120.0) -> str:
        """Read on until this is said; gives all that was."""
        assert self.process.stdout
        async with asyncio.timeout(within):
            while text not in self.said:
                line = await self.process.stdout.readline()
                assert line, f"it ended and never said {text!r}:\n{self.said}"
                self.said += line.decode()
        return self.said

    async def end(self, number: signal.Signals) -> int:
        """Send a signal; gives the exit code."""
        assert self.process.stdout
        self.process.send_signal(number)
        async with asyncio.timeout(60):
            self.said += (await self.process.stdout.read()).decode()
            return await self.process.wait()

    @property
    def children(self) -> list[int]:
        """Give the PIDs of its services."""
        pid = self.process.pid
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(each) for task in tasks for each in task.read_text().split()]

    def service(self, name: str) -> int:
        """Give the PID of one of its services."""
        for pid in self.children:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"run" in command and name.encode() in command:
                return pid
        raise AssertionError(f"{name} does not run")

    def environment(self, name: str) -> dict[str, str]:
        """Give what one of its services was given."""
        text = Path(f"/proc/{self.service(name)}/environ").read_text()
        return dict(each.split("=", 1) for each in text.split("\0") if each)


def alive(pids: list[int]) -> list[int]:
    """Those that still run."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@asynccontextmanager
async def up(*arguments: str, **settings: str) -> AsyncIterator[Up]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services", "up"),
        *arguments,
        env={"PATH": os.environ["PATH"], **settings},
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    running = Up(process)
    try:
        yield running
    except BaseException:
        print(running.said)  # noqa: T201 - pytest shows it with the failure
        raise
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def schedule_as_it_says(said: str) -> None:
    """Schedule a callback in the words of `ringback up`, and find it in the list."""
    wish = re.search(r"curl (\S+) --json '(.+)'", said)
    docs = re.search(r"try the HTTP interface +(\S+)", said)
    list_it = re.search(r"(schedule list --url \S+)", said)
    assert wish
    assert docs
    assert list_it
    json_body = {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession() as http,
        http.get(docs[1]) as page,
        http.post(wish[1], data=wish[2], headers=json_body) as answer,
    ):
        assert page.status == 200
        assert answer.status == 201, await answer.text()
        identity = (await answer.json())["id"]
    listed = await ringback(*list_it[1].split(), amqp_url=None)
    assert identity in listed.out


async def test_the_first_five_minutes(installation: Installation) -> None:
    """Everything private: what `make run` shows, a message of one's own, and Ctrl-C."""
    assert installation
    async with up() as it:
        said = await it.until(EVERYTHING_RUNS)

        for service in ("RabbitMQ", "PostgreSQL", *SERVICES):
            assert re.search(rf"{service} +ready", said)
        good = (
            "delivered: the receiver responded with 200;"
            " signatures verified (x-signature, webhook-signature)"
        )
        assert f"1  attempt 1 {good}" in said
        assert "2  attempt 1 failed: the receiver responded with 503" in said
        assert "2  attempt 2 failed: the receiver responded with 503" in said
        assert f"2  attempt 3 {good}" in said
        assert "3  dead-lettered to callbacks.dead: 169.254.169.254 is not a public" in said

        late = re.search(r"4  delivered (-?\d+) ms after it was due; signatures verified", said)
        assert late
        assert 0 <= int(late[1]) < 2000

        # E1 to E6: events become mails for those who want them, a code an SMS, but not too late.
        assert re.search(r"5  “Welcome to Ringback” sent to \S+@example.com", said)
        mails = re.search(r"6  (\d+) of (\d+) users got an e-mail .*; (\d+) skipped", said)
        assert mails
        assert int(mails[1]) + int(mails[3]) == int(mails[2]) > 1000
        assert re.search(r"7  posting \S+: “Ringback: your code is 1234.*” sent", said)
        assert re.search(r"8  posting \S+: expired, nothing was sent", said)

        # Its own words, typed into another terminal.
        export = re.search(r"export RINGBACK_AMQP_URL=(\S+)", said)
        order = re.search(r"echo '(.+)' \| .*ringback.* send SendCallback", said)
        assert export
        assert order
        amqp_url = export[1]
        sent = await ringback("send", "SendCallback", amqp_url=amqp_url, given=order[1])
        assert sent.code == 0
        sandbox = json.loads(order[1])["target_url"].removesuffix("/hooks/mine")
        url = f"{sandbox}/api/deliveries/wait?mailbox=mine&webhook_id={sent.out.strip()}"
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            [delivery] = (await answer.json())["items"]
        assert delivery["verified"]

        await schedule_as_it_says(said)

        # Without the export, a command in this checkout finds the private broker by itself.
        found = await ringback("dead", "list", "callbacks", amqp_url=None)
        assert "169.254.169.254" in found.out
        assert amqp_url in found.err

        # A ticket is signed with the key that the services were given.
        ticket = await ringback("ticket", "shop", amqp_url=None)
        given = it.environment("callback")
        assert TicketVerifier(given["RINGBACK_TICKET_KEY"]).verify(ticket.out.strip()) == "shop"
        assert SecretCipher.of(given["RINGBACK_SECRETS_KEY"])

        services = it.children
        assert len(services) >= 2
        assert await it.end(signal.SIGINT) == 0
        assert it.said.rstrip().endswith("Stopped.")
        assert not alive(services)
        checked = await ringback("topology", "check", amqp_url=amqp_url)
        assert checked.code == 1, "the private broker still runs"


async def test_a_service_that_dies_ends_everything_and_shows_its_log(
    amqp_url: str, database_url: str
) -> None:
    settings = {"RINGBACK_AMQP_URL": amqp_url, "RINGBACK_DATABASE_URL": database_url}
    async with up("--without-sandbox", **settings) as it:
        await it.until(EVERYTHING_RUNS)
        assert "sandbox" not in it.said

        os.kill(it.service("callback"), signal.SIGKILL)

        await it.until("callback ended by SIGKILL")
        await it.until("consumer is ready")  # from its log
        assert await asyncio.wait_for(it.process.wait(), 30) == 1


async def test_side_by_side_with_what_has_the_default_ports(
    amqp_url: str, database_url: str
) -> None:
    settings = {"RINGBACK_AMQP_URL": amqp_url, "RINGBACK_DATABASE_URL": database_url}
    taken = []
    for port in (8025, 8080, 8090, 9101, 9103, 9109):
        with suppress(OSError):  # somebody else has it, which is as good
            taken.append(await asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", port))
    try:
        async with up(**settings) as it:
            said = await it.until(EVERYTHING_RUNS)
            for port in (8025, 8080, 8090, 9101, 9103, 9109):
                assert f"127.0.0.1:{port}/" not in said
            assert "2  attempt 3 delivered" in said
            assert await it.end(signal.SIGTERM) == 0
    finally:
        for server in taken:
            server.close()


async def test_services_do_not_outlive_a_kill_9(amqp_url: str, database_url: str) -> None:
    settings = {"RINGBACK_AMQP_URL": amqp_url, "RINGBACK_DATABASE_URL": database_url}
    async with up("--without-sandbox", **settings) as it:
        await it.until(EVERYTHING_RUNS)
        services = it.children

        it.process.kill()

        await until(lambda: not alive(services))


@pytest.mark.parametrize("name", ["RINGBACK_AMQP_URL", "RINGBACK_CALLBACK_PREFETCH"])
async def test_wrong_configuration_starts_nothing(name: str) -> None:
    async with up(**{name: "nonsense"}) as it:
        assert name in await it.until(name)
        assert await it.process.wait() == 2
