"""`ringback up`: the demonstration, failures, and a clean stop."""

import asyncio
import json
import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from deploy.local.install import Installation
from shared.registry import SERVICES
from shared.security.encryption import SecretCipher
from shared.security.tickets import TicketVerifier
from tests.fakes.command import ringback
from tests.fakes.console import Browser
from tests.fakes.smtp import mail_server
from tests.fakes.up import EVERYTHING_IS_RUNNING, alive, up
from tests.fakes.waiting import until


@pytest.fixture(autouse=True)
def _own_directory(stack_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep data, logs and keys apart from those of a `ringback up` in this checkout."""
    monkeypatch.setenv("RINGBACK_LOCAL_DIRECTORY", str(stack_directory / "up"))


def check_texts(output: str) -> None:
    """Check that a code is sent, that mailings start, wait and stop, and what users got."""
    assert re.search(r"7  posting \S+: “Ringback: your code is 1234.*” sent", output)
    assert re.search(r"8  posting \S+: expired, nothing was sent", output)
    # M2 to M5
    assert re.search(r"9  mailing \S+: 400 of 400 sent, finished", output)
    assert re.search(r"10 started \d+ ms after that, 50 sent, finished", output)
    assert re.search(r"11 running: it is 0\d:\d\d in \S+, .* and 0 are sent", output)
    stopped = re.search(r"12 2 s later (\d+) sent, 4 s later (\d+) sent", output)
    assert stopped
    assert 200 <= int(stopped[1]) == int(stopped[2]) < 400
    check_subscriptions(output)


def check_subscriptions(output: str) -> None:
    """Check that users and an endpoint got what they must get."""
    verified = "; signatures verified"
    # U1 to U4
    assert re.search(
        r"13 Bob's callback received “Hello Bob” \d+ ms after Ann sent it, with sequence 1"
        f"{verified}",
        output,
    )
    assert re.search(r"13 Ann's poll returned “Hello Ann” \d+ ms after Bob sent it", output)
    assert "13 Bob's poll also returns the event of his callback" in output
    moved = r"callback_deprecated: bob-(\w+) → moved-\1"
    assert re.search(rf"14 \S+/hooks/bob-\w+ received {moved}{verified}", output)
    assert re.search(rf"14 \S+/hooks/moved-\w+ received {moved}", output)
    # N1 to N4
    assert f"15 of order.paid and invoice.created it received invoice.created{verified}" in output
    disabled = "it is disabled, and another endpoint received endpoint.disabled"
    assert f"16 it responded with 410: {disabled}" in output
    assert f"16 active again: one replay sent the 3 messages{verified}" in output
    check_console(output)


def check_console(output: str) -> None:
    """Check that the journal has the story of a callback, and that a replay adds to it."""
    # N6, N7
    story = "failed (503), failed (503), delivered (200)"
    assert f"17 the journal has 3 attempts: {story}" in output
    assert "18 sent again under the same webhook-id: delivered" in output
    assert re.search(r"timeline of callback 2: http://\S+/callbacks/one\?id=demo-\w+-2", output)
    assert re.search(r"start, watch and pause: http://\S+/mailings/[0-9a-f-]{36}\n", output)  # M10


async def sign_in_at_the_printed_console(output: str) -> None:
    """Open the console, and sign in with one click."""
    console = re.search(r"  console +(http://\S+)/\n", output)
    assert console
    jar = aiohttp.CookieJar(unsafe=True, treat_as_secure_origin=console[1])
    async with aiohttp.ClientSession(cookie_jar=jar) as http:
        shown = await Browser(console[1], http).sign_in("ada")
    assert shown.status == 200
    assert "ada, admin" in shown.text  # M11


async def run_printed_schedule_command(output: str) -> None:
    """Schedule a callback with the printed command, and find it in the list."""
    schedule = re.search(r"curl (\S+) --json '(.+)'", output)
    docs = re.search(r"HTTP API, to try +(\S+)", output)
    list_command = re.search(r"(schedule list)$", output, re.MULTILINE)
    assert schedule
    assert docs
    assert list_command
    json_body = {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession() as http,
        http.get(docs[1]) as page,
        http.post(schedule[1], data=schedule[2], headers=json_body) as response,
    ):
        assert page.status == 200
        assert response.status == 201, await response.text()
        identity = (await response.json())["id"]
    listed = await ringback(*list_command[1].split(), amqp_url=None)
    assert identity in listed.out
    gateway = schedule[1].removesuffix("/v1/callbacks")
    assert f"Using the gateway of this checkout, {gateway}" in listed.err


async def test_up_demonstrates_every_service_and_stops_on_ctrl_c(
    installation: Installation,
) -> None:
    """Run the demonstration on private servers, send a callback, and press Ctrl-C."""
    assert installation
    async with up() as running:
        output = await running.until(EVERYTHING_IS_RUNNING)

        for service in ("RabbitMQ", "PostgreSQL", *SERVICES):
            assert re.search(rf"{service} +ready", output)
        delivered = (
            "delivered: the receiver responded with 200;"
            " signatures verified (x-signature, webhook-signature)"
        )
        assert f"1  attempt 1 {delivered}" in output
        assert "2  attempt 1 failed: the receiver responded with 503" in output
        assert "2  attempt 2 failed: the receiver responded with 503" in output
        assert f"2  attempt 3 {delivered}" in output
        assert "3  dead-lettered to callbacks.dead: 169.254.169.254 is not a public" in output

        lateness = re.search(
            r"4  delivered (-?\d+) ms after it was due; signatures verified", output
        )
        assert lateness
        assert 0 <= int(lateness[1]) < 20_000

        # E1 to E6: events become e-mails to subscribers. A code is sent as an SMS until its expiry.
        welcome = re.search(r"5  “Welcome to Ringback” sent to \S+@sandbox\.invalid: (\S+)", output)
        assert welcome
        async with aiohttp.ClientSession() as http, http.get(welcome[1]) as page:
            assert "Welcome to Ringback" in await page.text()
        mails = re.search(r"6  (\d+) of (\d+) users got an e-mail .*; (\d+) skipped", output)
        assert mails
        assert int(mails[1]) + int(mails[3]) == int(mails[2]) > 1000
        check_texts(output)

        # The printed commands work in another terminal.
        broker_url = re.search(r"export RINGBACK_AMQP_URL=(\S+)", output)
        send_command = re.search(r"echo '(.+)' \| .*ringback.* send SendCallback", output)
        assert broker_url
        assert send_command
        amqp_url = broker_url[1]
        sent = await ringback("send", "SendCallback", amqp_url=amqp_url, stdin=send_command[1])
        assert sent.code == 0
        sandbox = json.loads(send_command[1])["target_url"].removesuffix("/hooks/mine")
        url = f"{sandbox}/api/deliveries/wait?mailbox=mine&webhook_id={sent.out.strip()}"
        async with aiohttp.ClientSession() as http, http.get(url) as response:
            [delivery] = (await response.json())["items"]
        assert delivery["verified"]

        await run_printed_schedule_command(output)
        await sign_in_at_the_printed_console(output)

        # Without the export, a command finds the private broker.
        found = await ringback("dead", "list", "callbacks", amqp_url=None)
        assert "169.254.169.254" in found.out
        assert amqp_url in found.err

        # A ticket is signed with the key of the services.
        ticket = await ringback("ticket", "shop", amqp_url=None)
        given = running.environment("callback")
        assert TicketVerifier(given["RINGBACK_TICKET_KEY"]).verify(ticket.out.strip()) == "shop"
        assert SecretCipher.of(given["RINGBACK_SECRETS_KEY"])

        services = running.children
        assert len(services) >= 2
        assert await running.end(signal.SIGINT) == 0
        assert running.output.rstrip().endswith("Stopped.")
        assert not alive(services)
        checked = await ringback("topology", "check", amqp_url=amqp_url)
        assert checked.code == 1, "the private broker still runs"


@pytest.mark.slow
async def test_finding_c16_a_real_mail_server_gets_no_e_mail_of_the_demonstration(
    installation: Installation, stack_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding C16: neither at once, nor after a demonstration in the sandbox was interrupted."""
    assert installation
    monkeypatch.setenv("RINGBACK_LOCAL_DIRECTORY", str(stack_directory / "mail-server"))
    async with mail_server() as real:
        async with up(RINGBACK_SMTP_URL=real.url()) as running:
            output = await running.until(EVERYTHING_IS_RUNNING)
            assert "2  attempt 3 delivered" in output
            assert "are not shown: RINGBACK_SMTP_URL is set" in output
            assert await running.end(signal.SIGINT) == 0

        async with up() as running:
            await running.until("7  posting")
            assert await running.end(signal.SIGINT) == 0
        async with up(RINGBACK_SMTP_URL=real.url()) as running:
            await running.until("e-mails of an interrupted demonstration may wait")
            assert await running.process.wait() == 1
        assert real.mails == []


async def test_a_killed_service_starts_again_and_one_that_ends_stops_everything(
    amqp_url: str, database_url: str
) -> None:
    settings = {"RINGBACK_AMQP_URL": amqp_url, "RINGBACK_DATABASE_URL": database_url}
    async with up("--without-sandbox", **settings) as running:
        await running.until(EVERYTHING_IS_RUNNING)
        assert "sandbox" not in running.output
        assert "The console is left out: RINGBACK_OIDC_ISSUER is not set" in running.output

        killed = running.service("callback")
        os.kill(killed, signal.SIGKILL)
        await running.until("callback was killed by SIGKILL, and is started again")
        running.output = ""
        assert "callback" in await running.until("/readyz  PID ")
        assert running.service("callback") != killed

        os.kill(running.service("callback"), signal.SIGTERM)
        await running.until("callback ended with exit code 0")
        await running.until("consumer is ready")  # from its log
        assert await asyncio.wait_for(running.process.wait(), 30) == 1


@pytest.mark.slow
async def test_up_uses_free_ports_if_the_default_ports_are_taken(
    amqp_url: str, database_url: str
) -> None:
    settings = {"RINGBACK_AMQP_URL": amqp_url, "RINGBACK_DATABASE_URL": database_url}
    taken = []
    for port in (8025, 8080, 8090, 9101, 9103, 9109):
        with suppress(OSError):  # already taken
            taken.append(await asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", port))
    try:
        async with up(**settings) as running:
            output = await running.until(EVERYTHING_IS_RUNNING)
            for port in (8025, 8080, 8090, 9101, 9103, 9109):
                assert f"127.0.0.1:{port}/" not in output
            assert "2  attempt 3 delivered" in output
            assert await running.end(signal.SIGTERM) == 0
    finally:
        for server in taken:
            server.close()


@pytest.mark.slow
async def test_finding_d14_up_works_after_an_interrupted_one_and_beside_another(
    amqp_url: str, database_url: str, stack_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding D14: it ended early after an interrupted start, or beside a running `make run`."""
    monkeypatch.setenv("RINGBACK_LOCAL_DIRECTORY", str(stack_directory / "interrupted"))
    for number in (signal.SIGKILL, signal.SIGINT):
        async with up() as interrupted:
            await interrupted.until("Starting a private")
            await interrupted.end(number)
    other = {
        "RINGBACK_AMQP_URL": amqp_url,
        "RINGBACK_DATABASE_URL": database_url,
        "RINGBACK_LOCAL_DIRECTORY": str(stack_directory / "beside"),
    }
    async with up("--without-sandbox", **other) as beside, up("--without-sandbox") as running:
        await beside.until(EVERYTHING_IS_RUNNING)
        await running.until(EVERYTHING_IS_RUNNING)
        assert await running.end(signal.SIGINT) == 0


async def test_services_stop_after_a_kill_9_of_up(amqp_url: str, database_url: str) -> None:
    settings = {"RINGBACK_AMQP_URL": amqp_url, "RINGBACK_DATABASE_URL": database_url}
    async with up("--without-sandbox", **settings) as running:
        await running.until(EVERYTHING_IS_RUNNING)
        services = running.children

        running.process.kill()

        await until(lambda: not alive(services))


@pytest.mark.parametrize("name", ["RINGBACK_AMQP_URL", "RINGBACK_CALLBACK_PREFETCH"])
async def test_wrong_configuration_starts_nothing(name: str) -> None:
    async with up(**{name: "nonsense"}) as running:
        assert name in await running.until(name)
        assert await running.process.wait() == 2
