"""E6: what a mail server's answers mean at each step, and how its connections are used."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme

from services.delivery.domain import ProviderError
from services.delivery.smtp import MailServer
from shared.errors import ExpiredError, PermanentError, TransientError
from tests.fakes.sandbox import sandbox
from tests.fakes.smtp import USER, Script, mail_server

SENDER, TO = "news@shop.example.com", "c4n4ry@example.org"
CONTENT = b"Subject: x\r\n\r\nHello"
TALK = "5.1.1 <c4n4ry@example.org> is not here"


def fine() -> None:
    """Nothing is in the way of the hand-over."""


async def send(server: MailServer) -> None:
    await server.send(SENDER, TO, CONTENT, fine)


@asynccontextmanager
async def using(url: str, **options: Any) -> AsyncIterator[MailServer]:
    given: dict[str, Any] = {"tls": "offered", "timeout": 5.0}
    server = MailServer(url, **given | options)
    try:
        yield server
    finally:
        await server.close()


# E6: SMTP 4xx against 5xx
@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize(
    ("code", "meaning"), [(450, TransientError), (452, TransientError), (550, PermanentError)]
)
async def test_e6_a_refusal_is_for_now_or_for_good_and_the_connection_is_used_again(
    step: str, code: int, meaning: type[Exception]
) -> None:
    async with mail_server({step: [f"{code} {TALK}"]}) as script, using(script.url()) as server:
        with pytest.raises(meaning) as caught:
            await send(server)
        assert type(caught.value) is meaning
        assert str(caught.value) == f"the mail server responded with {code} 5.1.1 to {step}"
        await send(server)
        assert (len(script.mails), script.connections) == (1, 1)


@pytest.mark.parametrize(
    ("step", "answer"),
    [
        ("EHLO", "550 not you"),
        ("EHLO", "421 too busy"),
        ("MAIL", "530 5.7.0 log in first"),
        ("MAIL", "421 4.3.2 going down"),
        ("RCPT", "421 4.3.2 going down"),
        ("DATA", "421 4.3.2 going down"),
        ("DATA", "399 what"),
    ],
)
async def test_e6_what_is_about_the_connection_is_the_servers_trouble(
    step: str, answer: str
) -> None:
    answers = {step: [answer], "HELO": ["550 not you either"]}
    async with mail_server(answers) as script, using(script.url()) as server:
        with pytest.raises(ProviderError):
            await send(server)
        script.answers.clear()
        await send(server)
        assert (len(script.mails), script.connections) == (1, 2)


@pytest.mark.parametrize("at", ["hello", "rcpt", "data"])
@pytest.mark.parametrize("behaviour", ["close", "hang"])
async def test_e6_a_server_that_goes_away_or_hangs_is_trouble_and_over_in_time(
    at: str, behaviour: str
) -> None:
    async with sandbox() as box, using(str(box.smtp), timeout=0.4) as server:
        await box.configure("/api/mails/settings", behaviour={"kind": behaviour}, at=at, times=2)
        started = asyncio.get_running_loop().time()
        with pytest.raises(ProviderError) as caught:
            await send(server)
        assert asyncio.get_running_loop().time() - started < 1.4
        assert TO not in str(caught.value)


async def test_e6_no_server_is_trouble() -> None:
    async with mail_server() as script:
        url = script.url()
    async with using(url) as server:
        with pytest.raises(ProviderError, match=r"Connect call failed|Connection refused|Errno"):
            await send(server)


async def test_connections_are_kept_and_one_that_the_server_closed_is_replaced() -> None:
    async with mail_server() as script, using(script.url()) as server:
        await asyncio.gather(*(send(server) for _ in range(5)))
        assert script.connections == 5
        for _ in range(3):
            await asyncio.gather(*(send(server) for _ in range(5)))
        assert (script.connections, len(script.mails)) == (5, 20)
        script.hang_up()
        await send(server)
        assert (script.connections, len(script.mails)) == (6, 21)
        # One that answers 421 to the next mail, as Postfix does after a while, is replaced as well.
        script.answers["MAIL"] = ["421 4.4.2 timeout exceeded"]
        await send(server)
        assert (script.connections, len(script.mails)) == (7, 22)


async def test_e6_what_expires_while_the_server_is_slow_is_kept_back() -> None:
    def too_late() -> None:
        raise ExpiredError("expired")

    async with mail_server() as script, using(script.url()) as server:
        with pytest.raises(ExpiredError):
            await server.send(SENDER, TO, CONTENT, too_late)
        await send(server)
        assert (len(script.mails), script.connections) == (1, 1)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certified(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def trust(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def delivered(script: Script, url: str, tls: str, trust: ssl.SSLContext) -> bool:
    """Whether a mail got through; then whether it was encrypted."""
    async with using(url, tls=tls, trust=trust) as server:
        await send(server)
    return script.encrypted[-1]


async def test_tls_is_used_as_it_is_wanted(
    certified: ssl.SSLContext, trust: ssl.SSLContext
) -> None:
    async with mail_server(tls=certified) as script:
        assert await delivered(script, script.url(), "offered", trust)
        assert await delivered(script, script.url(), "required", trust)
        assert not await delivered(script, script.url(), "off", trust)
        with pytest.raises(ProviderError, match="certificate verify failed"):  # by nobody we know
            await delivered(script, script.url(), "offered", ssl.create_default_context())
    async with mail_server() as script:
        assert not await delivered(script, script.url(), "offered", trust)
        with pytest.raises(ProviderError, match="STARTTLS"):
            await delivered(script, script.url(), "required", trust)
    async with mail_server(tls=certified, from_the_start=True) as script:
        await delivered(script, script.url("smtps"), "offered", trust)
        with pytest.raises(ProviderError, match=r"(?i)certificate verify failed"):
            await delivered(script, script.url("smtps"), "off", ssl.create_default_context())
        assert len(script.mails) == 1


async def test_it_logs_in_and_a_wrong_password_is_trouble_that_is_not_told(
    certified: ssl.SSLContext, trust: ssl.SSLContext
) -> None:
    async with mail_server(tls=certified) as script:
        await delivered(script, script.url(login=f"{USER}:pass%20word@"), "required", trust)
        assert script.logged_in == [True]
        with pytest.raises(ProviderError, match="responded with 535 to login") as caught:
            await delivered(script, script.url(login=f"{USER}:c4n4ry@"), "required", trust)
        assert "c4n4ry" not in str(caught.value)
