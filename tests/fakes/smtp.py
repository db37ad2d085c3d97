"""A mail server whose responses the test chooses, with optional TLS and login."""

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
    """The responses to each command, used once each before `250 OK`, and what was received."""

    responses: dict[str, list[str]] = field(default_factory=dict)
    connections: int = 0
    mails: list[bytes] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)
    logged_in: list[bool] = field(default_factory=list)
    logins: int = 0
    port: int = 0
    max_connections: int = 1000
    refused: int = 0
    open: list[SMTP] = field(default_factory=list)

    def url(self, scheme: str = "smtp", login: str = "") -> str:
        return f"{scheme}://{login}localhost:{self.port}"

    def response(self, command: str, default: str = "250 OK") -> str:
        chosen = self.responses.get(command)
        return chosen.pop(0) if chosen else default

    def hang_up(self) -> None:
        """Close every connection, as servers do with idle ones."""
        for session in self.open:
            if session.transport is not None:
                session.transport.close()
        self.open.clear()

    # aiosmtpd defines the names and parameters of these methods.
    async def handle_EHLO(  # noqa: N802
        self, _server: SMTP, session: Session, _: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        if sum(each.transport is not None for each in self.open) > self.max_connections:
            self.refused += 1
            return ["421 4.7.0 Error: too many connections"]
        response = self.response("EHLO", "")
        return [response] if response else responses

    async def handle_HELO(  # noqa: N802
        self, _server: SMTP, _session: Session, _: Envelope, _hostname: str
    ) -> str:
        return self.response("HELO")

    async def handle_MAIL(  # noqa: N802
        self, _server: SMTP, _: Session, envelope: Envelope, address: str, _options: Any
    ) -> str:
        response = self.response("MAIL")
        if response.startswith("2"):
            envelope.mail_from = address
        return response

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, _: Session, envelope: Envelope, address: str, _options: Any
    ) -> str:
        response = self.response("RCPT")
        if response.startswith("2"):
            envelope.rcpt_tos.append(address)
        return response

    async def handle_DATA(  # noqa: N802
        self, _: SMTP, session: Session, envelope: Envelope
    ) -> str:
        response = self.response("DATA")
        if response.startswith("2"):
            assert isinstance(envelope.content, bytes)
            self.mails.append(envelope.content)
            self.encrypted.append(session.ssl is not None)
            self.logged_in.append(bool(session.authenticated))
        return response


@asynccontextmanager
async def mail_server(
    responses: dict[str, list[str]] | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    implicit_tls: bool = False,
) -> AsyncIterator[Script]:
    """Run a mail server during the block. With `tls` it offers STARTTLS or starts with TLS."""
    script = Script(responses or {})

    def log_in(_server: Any, _session: Any, _envelope: Any, _: str, data: Any) -> AuthResult:
        script.logins += 1
        known = data == LoginPassword(USER.encode(), PASSWORD.encode())
        return AuthResult(success=known, handled=known)

    def connected() -> SMTP:
        script.connections += 1
        session = SMTP(
            script,
            hostname="mail.test",
            tls_context=None if implicit_tls else tls,
            auth_require_tls=False,
            authenticator=log_in,
        )
        script.open.append(session)
        return session

    server = await asyncio.get_running_loop().create_server(
        connected, "localhost", 0, ssl=tls if implicit_tls else None
    )
    script.port = server.sockets[0].getsockname()[1]
    try:
        yield script
    finally:
        server.close()
        script.hang_up()
        await server.wait_closed()
