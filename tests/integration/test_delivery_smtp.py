"""E6: the meaning of a mail server's responses at each step, and the use of connections."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme

from services.delivery.domain import BusyError, ProviderError, ThrottledError
from services.delivery.smtp import MailServer
from shared.errors import ExpiredError, PermanentError, TransientError
from tests.fakes.sandbox import running_sandbox
from tests.fakes.smtp import USER, Script, mail_server

SENDER, RECIPIENT = "news@shop.example.com", "c4n4ry@example.org"
CONTENT = b"Subject: x\r\n\r\nHello"
DETAIL = "5.1.1 <c4n4ry@example.org> is not here"


async def not_expired() -> None:
    """Allow sending."""


async def send(server: MailServer) -> int:
    return await server.send(SENDER, RECIPIENT, CONTENT, not_expired)


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[MailServer]:
    defaults: dict[str, Any] = {"tls": "offered", "timeout": 5.0}
    server = MailServer(url, **defaults | options)
    try:
        yield server
    finally:
        await server.close()


@pytest.mark.parametrize(
    ("step", "code", "error"),
    [
        *((step, 450, ThrottledError) for step in ("MAIL", "RCPT", "DATA")),
        *((step, 452, TransientError) for step in ("MAIL", "RCPT", "DATA")),
        *((step, 550, PermanentError) for step in ("RCPT", "DATA")),
    ],
)
async def test_e6_a_refusal_is_temporary_or_permanent_and_the_connection_is_reused(
    step: str, code: int, error: type[Exception]
) -> None:
    async with (
        mail_server({step: [f"{code} {DETAIL}"]}) as script,
        connected(script.url()) as server,
    ):
        with pytest.raises(error) as caught:
            await send(server)
        assert type(caught.value) is error
        assert str(caught.value) == f"the mail server responded with {code} 5.1.1 to {step}"
        await send(server)
        assert (len(script.mails), script.connections) == (1, 1)


@pytest.mark.parametrize(
    ("step", "response"),
    [
        ("EHLO", "550 not you"),
        ("EHLO", "421 too busy"),
        ("MAIL", "530 5.7.0 log in first"),
        ("MAIL", "550 5.7.1 sender refused"),  # finding C12: it refuses us, not the recipient
        ("MAIL", "421 4.3.2 going down"),
        ("RCPT", "421 4.3.2 going down"),
        ("DATA", "421 4.3.2 going down"),
        ("DATA", "399 what"),
    ],
)
async def test_e6_responses_about_the_connection_are_provider_errors(
    step: str, response: str
) -> None:
    responses = {step: [response], "HELO": ["550 not you either"]}
    async with mail_server(responses) as script, connected(script.url()) as server:
        with pytest.raises(ProviderError):
            await send(server)
        script.responses.clear()
        await send(server)
        assert (len(script.mails), script.connections) == (1, 2)


@pytest.mark.parametrize("at", ["hello", "rcpt", "data"])
@pytest.mark.parametrize("behaviour", ["close", "hang"])
async def test_e6_a_server_that_closes_or_hangs_is_a_provider_error(
    at: str, behaviour: str
) -> None:
    async with running_sandbox() as sandbox, connected(str(sandbox.smtp), timeout=0.4) as server:
        await sandbox.configure(
            "/api/mails/settings", behaviour={"kind": behaviour}, at=at, times=2
        )
        started = asyncio.get_running_loop().time()
        with pytest.raises(ProviderError) as caught:
            await send(server)
        assert asyncio.get_running_loop().time() - started < 10
        assert RECIPIENT not in str(caught.value)


async def test_e6_an_unavailable_server_is_a_provider_error() -> None:
    async with mail_server() as script:
        url = script.url()
    async with connected(url) as server:
        with pytest.raises(ProviderError, match=r"Connect call failed|Connection refused|Errno"):
            await send(server)


@pytest.mark.parametrize("ending", ["", "\r\n", "\r\n.\r\n"])
async def test_a_line_with_a_dot_neither_ends_the_mail_nor_changes(ending: str) -> None:
    content = f"Subject: x\r\n\r\n.\r\n..\r\n.a\r\nMAIL FROM:<{SENDER}>{ending}".encode()
    async with mail_server({}) as script, connected(script.url()) as server:
        await server.send(SENDER, RECIPIENT, content, not_expired)
        assert await send(server) == 250  # the connection still works
        received = content if ending else content + b"\r\n"
        assert script.mails == [received, CONTENT + b"\r\n"]


async def test_connections_are_reused_and_closed_ones_replaced() -> None:
    async with mail_server() as script, connected(script.url()) as server:
        await asyncio.gather(*(send(server) for _ in range(5)))
        assert script.connections == 5
        for _ in range(3):
            await asyncio.gather(*(send(server) for _ in range(5)))
        assert (script.connections, len(script.mails)) == (5, 20)
        script.hang_up()
        await send(server)
        assert (script.connections, len(script.mails)) == (6, 21)
        # Postfix responds 421 to the next mail on an old connection; it is replaced, too.
        script.responses["MAIL"] = ["421 4.4.2 timeout exceeded"]
        await send(server)
        assert (script.connections, len(script.mails)) == (7, 22)


async def test_e6_a_mail_that_expires_while_the_server_is_slow_is_not_sent() -> None:
    async def expired() -> None:
        raise ExpiredError("expired")

    async with mail_server() as script, connected(script.url()) as server:
        with pytest.raises(ExpiredError):
            await server.send(SENDER, RECIPIENT, CONTENT, expired)
        await send(server)
        assert (len(script.mails), script.connections) == (1, 1)


async def test_m2_a_mail_that_is_stopped_while_the_server_delays_its_data_is_not_sent() -> None:
    checks: list[None] = []

    async def stopped_meanwhile() -> None:
        checks.append(None)
        if len(checks) == 2:
            raise ExpiredError("stopped")

    async with mail_server() as script, connected(script.url()) as server:
        with pytest.raises(ExpiredError, match="stopped"):
            await server.send(SENDER, RECIPIENT, CONTENT, stopped_meanwhile)
        await send(server)
        assert script.connections == 2
        assert script.mails == [CONTENT + b"\r\n"]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def sent_encrypted(
    script: Script, url: str, tls: str, client_context: ssl.SSLContext
) -> bool:
    """Send a mail and return whether the connection was encrypted."""
    async with connected(url, tls=tls, trust=client_context) as server:
        await send(server)
    return script.encrypted[-1]


async def test_tls_is_used_as_configured(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async with mail_server(tls=server_context) as script:
        assert await sent_encrypted(script, script.url(), "offered", client_context)
        assert await sent_encrypted(script, script.url(), "required", client_context)
        assert not await sent_encrypted(script, script.url(), "off", client_context)
        with pytest.raises(ProviderError, match="certificate verify failed"):  # unknown authority
            await sent_encrypted(script, script.url(), "offered", ssl.create_default_context())
    async with mail_server() as script:
        assert not await sent_encrypted(script, script.url(), "offered", client_context)
        with pytest.raises(ProviderError, match="STARTTLS"):
            await sent_encrypted(script, script.url(), "required", client_context)
    async with mail_server(tls=server_context, implicit_tls=True) as script:
        await sent_encrypted(script, script.url("smtps"), "offered", client_context)
        with pytest.raises(ProviderError, match=r"(?i)certificate verify failed"):
            await sent_encrypted(script, script.url("smtps"), "off", ssl.create_default_context())
        assert len(script.mails) == 1


async def test_a_wrong_password_is_a_provider_error_that_does_not_show_it(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async with mail_server(tls=server_context) as script:
        await sent_encrypted(
            script, script.url(login=f"{USER}:pass%20word@"), "required", client_context
        )
        assert script.logged_in == [True]
        with pytest.raises(ProviderError, match="responded with 535 to login") as caught:
            await sent_encrypted(
                script, script.url(login=f"{USER}:c4n4ry@"), "required", client_context
            )
        assert "c4n4ry" not in str(caught.value)


async def test_finding_c13_a_password_is_not_sent_when_starttls_is_stripped(
    client_context: ssl.SSLContext,
) -> None:
    async with mail_server() as script:  # an attacker removes the offer of STARTTLS
        with pytest.raises(ProviderError, match="STARTTLS"):
            await sent_encrypted(
                script, script.url(login=f"{USER}:pass%20word@"), "required", client_context
            )
        assert (script.logins, script.mails) == (0, [])


async def test_finding_d10_a_wrong_password_is_tried_once(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async with mail_server(tls=server_context) as script:
        with pytest.raises(ProviderError, match="535"):
            await sent_encrypted(
                script, script.url(login=f"{USER}:wrong@"), "required", client_context
            )
        assert script.logins == 1


@pytest.mark.parametrize("step", ["EHLO", "MAIL", "RCPT", "DATA"])
async def test_finding_d10_421_is_not_an_attempt(step: str) -> None:
    responses = {step: ["421 4.7.0 too many connections"], "HELO": ["421 4.7.0 too many"]}
    async with mail_server(responses) as script, connected(script.url()) as server:
        with pytest.raises(BusyError):
            await send(server)


async def test_finding_c18_an_address_outside_ascii_needs_a_server_with_smtputf8() -> None:
    async with mail_server({}) as script, connected(script.url()) as server:
        with pytest.raises(PermanentError, match="does not support addresses outside ASCII"):
            await server.send(SENDER, "用户@example.org", CONTENT, not_expired)
        await send(server)
        assert len(script.mails) == 1

    async with running_sandbox() as sandbox:
        async with connected(str(sandbox.smtp)) as server:
            await server.send(SENDER, "用户@example.org", CONTENT, not_expired)
        [mail] = await sandbox.received("/api/mails")
        assert mail["to"] == ["用户@example.org"]


async def test_e_mails_of_a_demonstration_go_to_the_sandbox_only() -> None:
    recipient = "vera.lem.7@sandbox.invalid"
    async with mail_server({}) as script, connected(script.url()) as server:
        with pytest.raises(PermanentError, match="exists in the sandbox only"):
            await server.send(SENDER, recipient, CONTENT, not_expired)
        assert script.mails == []

    async with running_sandbox() as sandbox:
        async with connected(str(sandbox.smtp)) as server:
            await server.send(SENDER, recipient, CONTENT, not_expired)
        [mail] = await sandbox.received("/api/mails")
        assert mail["to"] == [recipient]
