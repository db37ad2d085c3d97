"""A mail server that answers as it is told at each step, with TLS and log-in if wanted."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

USER, PASSWORD = "shop", "pass word"


@dataclass
class Script:
    """What it answers at a step, by name, once for each entry; then yes. And what it has seen."""

    answers: dict[str, list[str]] = field(default_factory=dict)
    connections: int = 0
    mails: list[bytes] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)
    logged_in: list[bool] = field(default_factory=list)
    port: int = 0
    open: list[SMTP] = field(default_factory=list)

    def url(self, scheme: str = "smtp", login: str = "") -> str:
        return f"{scheme}://{login}localhost:{self.port}"

    def told(self, step: str, usual: str = "250 OK") -> str:
        waiting = self.answers.get(step)
        return waiting.pop(0) if waiting else usual

    def hang_up(self) -> None:
        """Close every connection, as servers do with idle ones."""
        for session in self.open:
            if session.transport is not None:
                session.transport.close()
        self.open.clear()

    # The names, and what they are given, are aiosmtpd's.
    async def handle_EHLO(  # noqa: N802
        self, _server: SMTP, session: Session, _: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        answer = self.told("EHLO", "")
        return [answer] if answer else responses

    async def handle_HELO(  # noqa: N802
        self, _server: SMTP, _session: Session, _: Envelope, _hostname: str
    ) -> str:
        return self.told("HELO")

    async def handle_MAIL(  # noqa: N802
        self, _server: SMTP, _: Session, envelope: Envelope, address: str, _options: Any
    ) -> str:
        answer = self.told("MAIL")
        if answer.startswith("2"):
            envelope.mail_from = address
        return answer

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, _: Session, envelope: Envelope, address: str, _options: Any
    ) -> str:
        answer = self.told("RCPT")
        if answer.startswith("2"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(  # noqa: N802
        self, _: SMTP, session: Session, envelope: Envelope
    ) -> str:
        answer = self.told("DATA")
        if answer.startswith("2"):
            assert isinstance(envelope.content, bytes)
            self.mails.append(envelope.content)
            self.encrypted.append(session.ssl is not None)
            self.logged_in.append(bool(session.authenticated))
        return answer


def _known(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
    known = data == LoginPassword(USER.encode(), PASSWORD.encode())
    return AuthResult(success=known, handled=known)


@asynccontextmanager
async def mail_server(
    answers: dict[str, list[str]] | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    from_the_start: bool = False,
) -> AsyncIterator[Script]:
    """Run one for the length of the block; with `tls` it offers STARTTLS, or begins with it."""
    script = Script(answers or {})

    def connected() -> SMTP:
        script.connections += 1
        session = SMTP(
            script,
            hostname="mail.test",
            tls_context=None if from_the_start else tls,
            auth_require_tls=False,
            authenticator=_known,
        )
        script.open.append(session)
        return session

    server = await asyncio.get_running_loop().create_server(
        connected, "localhost", 0, ssl=tls if from_the_start else None
    )
    script.port = server.sockets[0].getsockname()[1]
    try:
        yield script
    finally:
        server.close()
        script.hang_up()
        await server.wait_closed()
