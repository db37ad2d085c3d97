"""The sandbox's mail server, its API and its pages."""

import asyncio
import smtplib
from collections.abc import AsyncIterator, Callable
from email.message import EmailMessage
from typing import Any

import pytest

from tests.fakes.sandbox import Sandbox, running_sandbox
from tests.fakes.waiting import until

TIMEOUT = 5


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with running_sandbox(max_body=100_000) as server:
        yield server


def mail(to: str = "b@x.org", subject: str = "New movies", **parts: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "Ringback <noreply@x.org>"
    message["To"] = to
    message["Subject"] = subject
    message["Message-ID"] = "<m-1@x.org>"
    message.set_content(parts.get("text", "hello"))
    if "html" in parts:
        message.add_alternative(parts["html"], subtype="html")
    return message


async def with_client(sandbox: Sandbox, work: Callable[[smtplib.SMTP], Any]) -> Any:
    """Run `work` with an SMTP client of the standard library, in a thread."""

    def connected() -> Any:
        with smtplib.SMTP(
            str(sandbox.smtp.host), sandbox.smtp.port or 0, timeout=TIMEOUT
        ) as client:
            return work(client)

    return await asyncio.to_thread(connected)


async def send(sandbox: Sandbox, *messages: EmailMessage) -> list[int]:
    """Send on one connection and return the response codes."""

    def work(client: smtplib.SMTP) -> list[int]:
        codes = []
        for message in messages:
            try:
                client.send_message(message)
                codes.append(250)
            except smtplib.SMTPRecipientsRefused as error:
                codes += [code for code, _ in error.recipients.values()]
            except smtplib.SMTPResponseException as error:
                codes.append(error.smtp_code)
        return codes

    codes: list[int] = await with_client(sandbox, work)
    return codes


async def connect(sandbox: Sandbox) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(sandbox.smtp.host, sandbox.smtp.port)
    assert (await reader.readline()).startswith(b"220 ")
    return reader, writer


async def command(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes) -> bytes:
    writer.write(line + b"\r\n")
    return await reader.readline()


async def behaviour_applied(sandbox: Sandbox) -> bool:
    """Return whether a mail got the configured behaviour."""
    state = await sandbox.get("/api/mails/settings")
    return bool(state["refused"])


async def test_e6_a_mail_is_accepted_and_shown(sandbox: Sandbox) -> None:
    message = mail(text="Привет", html="<h1>Привет</h1>", subject="Новые фильмы")
    assert await send(sandbox, message) == [250]
    [shown] = await sandbox.received("/api/mails", to="b@x.org")
    assert shown["id"] == "<m-1@x.org>"
    assert (shown["status"], shown["subject"], shown["from"], shown["to"]) == (
        250,
        "Новые фильмы",
        "noreply@x.org",
        ["b@x.org"],
    )
    assert (shown["text"].strip(), shown["html"].strip()) == ("Привет", "<h1>Привет</h1>")
    assert await sandbox.get(f"/api/mails/{shown['number']}") == shown
    for path, text in (
        ("/mails", "Новые фильмы"),
        (f"/mails/{shown['number']}", "Привет"),
        (f"/mails/{shown['number']}/html", "<h1>Привет</h1>"),
    ):
        async with sandbox.session.get(path) as response:
            assert response.status == 200
            assert text in await response.text()
    async with sandbox.session.get("/mails/999") as response:
        assert response.status == 404


async def test_one_connection_carries_many_mails_and_each_is_counted(sandbox: Sandbox) -> None:
    waiting = asyncio.create_task(sandbox.received("/api/mails", 30, within=60))
    assert await send(sandbox, *[mail(f"u{n}@x.org") for n in range(29)]) == [250] * 29
    assert not waiting.done()
    assert await send(sandbox, mail("u29@x.org")) == [250]
    async with asyncio.timeout(TIMEOUT):
        found = await waiting
    assert [each["to"] for each in found] == [[f"u{n}@x.org"] for n in range(30)]
    assert [each["to"] for each in await sandbox.received("/api/mails", to="u7@x.org")] == [
        ["u7@x.org"]
    ]
    result = await sandbox.get("/api/mails/wait", to="u7@x.org")
    assert (result["complete"], result["count"]) == (True, 1)
    assert (await sandbox.get("/api/mails/wait", id="<m-1@x.org>", limit=2))["count"] == 30


async def test_a_mail_is_stored_byte_for_byte(sandbox: Sandbox) -> None:
    """Covers dots at the start of lines, an empty mail, and an end that arrives in pieces."""
    reader, writer = await connect(sandbox)
    await command(reader, writer, b"HELO me")
    bodies = [
        b".",
        b"a: b\r\n\r\n..x\r\n...\r\n.\r\ny",
        b"\r\n.\r\n",
        b"",
        b"x" * 998,
    ]
    for body in bodies:
        assert (await command(reader, writer, b"MAIL FROM:<a@x.org>")).startswith(b"250")
        assert (await command(reader, writer, b"RCPT TO:<b@x.org>")).startswith(b"250")
        assert (await command(reader, writer, b"DATA")).startswith(b"354")
        lines = body.split(b"\r\n") if body else []
        escaped = b"".join(
            (b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines
        )
        for piece in (escaped, b".", b"\r", b"\n"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        assert (await reader.readline()).startswith(b"250")
    writer.close()
    sizes = [each["size"] for each in await sandbox.received("/api/mails", len(bodies))]
    assert sizes == [len(body) + 2 if body else 0 for body in bodies]


@pytest.mark.parametrize(
    ("at", "status"), [("rcpt", 550), ("rcpt", 451), ("data", 452), ("data", 554)]
)
async def test_e6_a_refusal_lasts_for_its_number_of_mails(
    sandbox: Sandbox, at: str, status: int
) -> None:
    behaviour = {"kind": "fail", "status": status}
    await sandbox.configure("/api/mails/settings", behaviour=behaviour, at=at, times=2)
    assert await send(sandbox, *[mail()] * 4) == [status, status, 250, 250]
    state = await sandbox.get("/api/mails/settings")
    assert (state["accepted"], state["refused"]) == (2, 2)
    refused = (await sandbox.get("/api/mails", accepted="false"))["items"]
    assert [(each["status"], each["behaviour"]) for each in refused] == [(status, "fail")] * 2
    async with sandbox.session.get("/mails") as response:
        assert f"status {status}" in await response.text()


async def test_e6_only_the_given_recipients_are_refused(sandbox: Sandbox) -> None:
    await sandbox.configure(
        "/api/mails/settings", behaviour={"kind": "fail", "status": 550}, to=["*@gone.org"]
    )
    sent = [mail("a@gone.org"), mail("b@x.org"), mail("B@GONE.org")]
    assert await send(sandbox, *sent) == [550, 250, 550]


async def test_the_greeting_can_be_refused(sandbox: Sandbox) -> None:
    behaviour = {"kind": "fail", "status": 421}
    await sandbox.configure("/api/mails/settings", behaviour=behaviour, at="hello", times=1)
    reader, writer = await connect(sandbox)
    assert (await command(reader, writer, b"EHLO me")).startswith(b"421")
    writer.close()
    assert await send(sandbox, mail()) == [250]


async def test_the_mail_server_can_be_slow(sandbox: Sandbox) -> None:
    await sandbox.configure(
        "/api/mails/settings", behaviour={"kind": "delay", "seconds": 0.3}, times=1
    )
    started = asyncio.get_running_loop().time()
    assert await send(sandbox, mail()) == [250]
    assert asyncio.get_running_loop().time() - started >= 0.3


@pytest.mark.parametrize("at", ["hello", "rcpt", "data"])
async def test_the_mail_server_can_close_the_connection(sandbox: Sandbox, at: str) -> None:
    await sandbox.configure("/api/mails/settings", behaviour={"kind": "close"}, at=at, times=1)
    with pytest.raises(smtplib.SMTPServerDisconnected, match=r"closed$"):  # not: timed out
        await send(sandbox, mail())
    assert await send(sandbox, mail()) == [250]
    [closed] = (await sandbox.get("/api/mails", accepted="false"))["items"]
    assert (closed["status"], closed["behaviour"]) == (None, "close")


@pytest.mark.parametrize("at", ["hello", "rcpt", "data"])
async def test_e6_a_hang_for_one_client_does_not_affect_the_others(
    sandbox: Sandbox, at: str
) -> None:
    await sandbox.configure("/api/mails/settings", behaviour={"kind": "hang"}, at=at, times=1)
    before = asyncio.all_tasks()
    reader, writer = await connect(sandbox)
    lines = [b"HELO me", b"MAIL FROM:<a@x.org>", b"RCPT TO:<b@x.org>", b"DATA"]
    for line in lines[: {"hello": 0, "rcpt": 2, "data": 4}[at]]:
        await command(reader, writer, line)
    writer.write({"hello": lines[0], "rcpt": lines[2], "data": b"."}[at] + b"\r\n")
    await until(lambda: behaviour_applied(sandbox), TIMEOUT)
    assert await send(sandbox, mail()) == [250]
    hanging = {task for task in asyncio.all_tasks() - before if "_handle_client" in repr(task)}
    assert hanging
    writer.close()  # a hang ends when its client closes
    await writer.wait_closed()
    _, pending = await asyncio.wait(hanging, timeout=TIMEOUT)
    assert not pending


async def test_the_mail_server_stops_without_waiting_for_hangs() -> None:
    async with asyncio.timeout(TIMEOUT):
        async with running_sandbox() as sandbox:
            await sandbox.configure("/api/mails/settings", behaviour={"kind": "hang"}, at="hello")
            reader, writer = await connect(sandbox)
            writer.write(b"EHLO me\r\n")
            await until(lambda: behaviour_applied(sandbox), TIMEOUT)
        with pytest.raises((asyncio.IncompleteReadError, OSError)):
            await reader.readexactly(1)
        writer.close()


async def test_a_too_large_mail_gets_552_and_the_connection_stays_open(sandbox: Sandbox) -> None:
    large = mail(text="0123456789\n" * 20_000)

    def work(client: smtplib.SMTP) -> list[Any]:
        client.helo()  # without EHLO the client doesn't know the limit
        codes: list[Any] = []
        for message in (large, mail()):
            client.mail("a@x.org")
            client.rcpt("b@x.org")
            codes.append(client.data(message.as_bytes())[0])
        return codes

    assert await with_client(sandbox, work) == [552, 250]


async def test_a_too_long_line_gets_500(sandbox: Sandbox) -> None:
    def work(client: smtplib.SMTP) -> list[int]:
        client.helo()
        codes = []
        for length in (999, 998):
            client.mail("a@x.org")
            client.rcpt("b@x.org")
            codes.append(client.data(b"x" * length)[0])
        return codes

    assert await with_client(sandbox, work) == [500, 250]


async def test_any_login_is_accepted(sandbox: Sandbox) -> None:
    code, _ = await with_client(sandbox, lambda client: client.login("user", "pw"))
    assert code == 235


@pytest.mark.parametrize(
    "address", ["a@x.org", "a.B+c=d@Sub.x.org", '"odd one"@x.org', "юзер@почта.рф"]
)
async def test_addresses_are_stored_unchanged(sandbox: Sandbox, address: str) -> None:
    def work(client: smtplib.SMTP) -> None:
        client.ehlo()
        client.sendmail("a@x.org", [address], b"x", mail_options=["SMTPUTF8"])

    await with_client(sandbox, work)
    [shown] = await sandbox.received("/api/mails")
    assert shown["to"] == [address]


@pytest.mark.parametrize("line", [b"RCPT TO:<b@x.org>", b"DATA", b"MAIL FROM:a@@x", b"NONSENSE"])
async def test_wrong_commands_get_5xx(sandbox: Sandbox, line: bytes) -> None:
    reader, writer = await connect(sandbox)
    await command(reader, writer, b"HELO me")
    assert (await command(reader, writer, line)).startswith(b"5")
    writer.close()


async def test_wrong_settings_are_named_and_change_nothing(sandbox: Sandbox) -> None:
    await sandbox.configure("/api/mails/settings", behaviour={"kind": "fail", "status": 550})
    wrong = {"behaviour": {"kind": "fail", "status": 250}, "at": "noon"}
    async with sandbox.session.put("/api/mails/settings", json=wrong) as response:
        assert response.status == 422
        fields = {each["field"] for each in (await response.json(content_type=None))["errors"]}
    assert fields == {"behaviour.status", "at"}
    assert await send(sandbox, mail()) == [550]


async def test_clearing_mails_resets_the_counters(sandbox: Sandbox) -> None:
    await send(sandbox, mail())
    async with sandbox.session.delete("/api/mails") as response:
        assert response.status == 204
    result = await sandbox.get("/api/mails/wait", timeout=0.1)
    assert (result["complete"], result["count"], result["items"]) == (False, 0, [])
