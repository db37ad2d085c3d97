"""The mail server: an SMTP sink that accepts everything, or shows the configured behaviour."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, Final

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session
from yarl import URL

from services.sandbox.behaviours import Close, Delay, MailSettings, Refuse
from services.sandbox.inbox import Inbox, ReceivedMessage, message_json
from shared.contracts.messages import SANDBOX_EXTENSION

# aiosmtpd logs each command at INFO, with addresses and credentials; each line of mail at DEBUG.
logging.getLogger("mail.log").setLevel(logging.WARNING)

_MESSAGE_ID = re.compile(rb"^message-id:\s*(<[^>\r\n]{1,998}>)", re.IGNORECASE | re.MULTILINE)
_PLAIN_ADDRESS: Final = re.compile(r"<([\w.+=-]{1,64}@[\w-]+(?:\.[\w-]+)*)>((?: .*)?)")
_LINE_END: Final = b"\r\n"
_END_OF_HEADERS: Final = b"\r\n\r\n"
_END_OF_MAIL: Final = b"\r\n.\r\n"
_MAX_LINE: Final = 998
_CHUNK: Final = 64 * 1024
_OK: Final = "250 2.0.0 OK"
# Characters shown of each part of a mail: as many as the default `max_body` has bytes.
_MAX_SHOWN: Final = 1024 * 1024


class MailServer:
    """The handler of SMTP commands. Each method returns the response, or never returns."""

    def __init__(self, inbox: Inbox[MailSettings]) -> None:
        self._inbox = inbox

    # aiosmtpd defines the names and the arguments.
    async def handle_HELO(  # noqa: N802
        self, server: SMTP, session: Session, _envelope: Envelope, hostname: str
    ) -> str:
        """Respond to HELO."""
        session.host_name = hostname
        return await self._misbehave(server, "hello") or f"250 {server.hostname}"

    async def handle_EHLO(  # noqa: N802
        self,
        server: SMTP,
        session: Session,
        _envelope: Envelope,
        hostname: str,
        responses: list[str],
    ) -> list[str]:
        """Respond to EHLO with the extensions."""
        session.host_name = hostname
        refusal = await self._misbehave(server, "hello")
        if refusal:
            return [refusal]
        first, *others = responses  # the name of the server
        return [first, f"250-{SANDBOX_EXTENSION}", *others]

    async def handle_RCPT(  # noqa: N802
        self,
        server: SMTP,
        _session: Session,
        envelope: Envelope,
        address: str,
        options: list[str],
    ) -> str:
        """Accept a recipient."""
        refusal = await self._misbehave(server, "rcpt", envelope, (address,))
        if refusal:
            return refusal
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return _OK

    async def handle_DATA(  # noqa: N802
        self, server: SMTP, _session: Session | None, envelope: Envelope
    ) -> str:
        """Accept a complete mail."""
        recipients = tuple(envelope.rcpt_tos)
        refusal = await self._misbehave(server, "data", envelope, recipients)
        if refusal:
            return refusal
        content = _content(envelope)
        self._inbox.record(
            time.time(),
            sender=envelope.mail_from or "",
            to=recipients,
            id=_message_id(content),
            status=250,
            accepted=True,
            content=content,
        )
        return _OK

    async def _misbehave(
        self, server: SMTP, at: str, envelope: Envelope | None = None, to: tuple[str, ...] = ()
    ) -> str | None:
        """Apply the behaviour for this command; return a refusal, or None to continue as usual.

        May never return: it is cancelled when the client closes or the server stops.
        """
        if self._inbox.settings.at != at:
            return None
        behaviour = self._inbox.next_behaviour(to)
        if behaviour is None:
            return None
        if isinstance(behaviour, Delay):
            await asyncio.sleep(behaviour.seconds)
            return None
        content = _content(envelope) if envelope else b""
        status = behaviour.status if isinstance(behaviour, Refuse) else None
        self._inbox.record(
            time.time(),
            sender=(envelope.mail_from if envelope else None) or "",
            to=to,
            id=_message_id(content),
            status=status,
            behaviour=behaviour.kind,
            fault=f"set to {behaviour.kind} at {at}",
            content=content,
        )
        if isinstance(behaviour, Refuse):
            return f"{behaviour.status} {behaviour.status // 100}.0.0 the sandbox is set to refuse"
        if isinstance(behaviour, Close) and server.transport is not None:
            server.transport.close()
        await asyncio.get_running_loop().create_future()
        raise AssertionError("unreachable: a hang ends only by cancellation")


@asynccontextmanager
async def smtp_server(
    inbox: Inbox[MailSettings], host: str, port: int, max_size: int
) -> AsyncIterator[URL]:
    """Receive mails for as long as the context lasts, and yield the URL. Stops at once.

    Every user name and password is accepted, also without TLS.

    Raises:
        OSError: cannot listen on the address.
    """
    loop = asyncio.get_running_loop()
    sessions: set[_Session] = set()
    handler = MailServer(inbox)
    server = await loop.create_server(
        lambda: _Session(sessions, handler, max_size, loop), host, port
    )
    try:
        host, port = server.sockets[0].getsockname()[:2]
        yield URL.build(scheme="smtp", host=host, port=port)
    finally:
        server.close()
        for session in list(sessions):
            session.abort()
        await server.wait_closed()


class _Session(SMTP):
    """A connection; it registers itself in `sessions`, so that a stop can close it."""

    def __init__(
        self,
        sessions: "set[_Session]",
        handler: MailServer,
        max_size: int,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(
            handler,
            data_size_limit=max_size,
            enable_SMTPUTF8=True,
            hostname="sandbox.ringback",
            ident="Ringback sandbox",
            auth_require_tls=False,
            authenticator=_accept_login,
            loop=loop,
        )
        self._sessions = sessions
        self._handler = handler
        self._max_size = max_size

    async def smtp_DATA(self, arg: str | None) -> None:  # noqa: N802 - aiosmtpd's name
        """Read a mail in chunks; aiosmtpd reads line by line, 700 µs for 200 lines.

        Nothing follows the end of the mail, because we do not offer PIPELINING.
        """
        envelope = self.envelope
        if envelope is None or not envelope.rcpt_tos or arg:
            # An error in any case: aiosmtpd sends the right code.
            await super().smtp_DATA(arg)
            return
        await self.push("354 End data with <CR><LF>.<CR><LF>")
        data = bytearray(_LINE_END)
        too_large = False
        while not data.endswith(_END_OF_MAIL):
            data += await self._reader.read(_CHUNK)
            if len(data) > self._max_size + len(_LINE_END + _END_OF_MAIL):
                too_large = True
                del data[: -len(_END_OF_MAIL)]
        # The sender doubled a dot at the beginning of a line (RFC 5321, 4.5.2).
        content = bytes(data[:-3]).replace(b"\r\n..", b"\r\n.").removeprefix(_LINE_END)
        envelope.content = envelope.original_content = content
        if too_large:
            status = f"552 5.3.4 larger than {self._max_size} bytes"
        elif any(len(line) > _MAX_LINE for line in content.split(_LINE_END)):
            status = f"500 5.6.0 a line is longer than {_MAX_LINE} bytes (RFC 5321, 4.5.3.1.6)"
        else:
            status = await self._handler.handle_DATA(self, self.session, envelope)
        self.envelope = self._create_envelope()
        await self.push(status)

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        # aiosmtpd's own parser takes as long as all the rest, so only unusual addresses use it.
        plain = _PLAIN_ADDRESS.fullmatch(arg)
        return (plain[1], plain[2]) if plain else super()._getaddr(arg)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._sessions.add(self)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._sessions.discard(self)
        super().connection_lost(error)

    def abort(self) -> None:
        """Close the connection now."""
        if isinstance(self.transport, asyncio.Transport):
            self.transport.abort()


def _accept_login(*_login: Any) -> AuthResult:
    return AuthResult(success=True)


def _content(envelope: Envelope) -> bytes:
    content = envelope.original_content
    return content if isinstance(content, bytes) else b""


def _message_id(content: bytes) -> str | None:
    """Return the `Message-ID`, from a search in the headers, without parsing the mail."""
    end = content.find(_END_OF_HEADERS)
    found = _MESSAGE_ID.search(content, 0, end + 2 if end >= 0 else len(content))
    return found[1].decode(errors="replace") if found else None


def parse_mail(message: ReceivedMessage) -> EmailMessage:
    """Parse a mail; malformed parts stay as they were received."""
    return message_from_bytes(message.content, policy=policy.default)


def part(mail: EmailMessage, kind: str) -> str | None:
    """Return the text of the `plain` or `html` part, if the mail has one."""
    try:
        found = mail.get_body((kind,))
        return None if found is None else str(found.get_content())[:_MAX_SHOWN]
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        # An unknown charset, or a part that does not match its headers.
        return f"(not readable: {type(error).__name__})"


def headers(mail: EmailMessage) -> list[tuple[str, str]]:
    """Return the decoded headers in their order."""
    return [(name, _decoded(name, raw)) for name, raw in mail.raw_items()]


def _decoded(name: str, raw: Any) -> str:
    """Return a header's value, or the raw text if it is not valid."""
    try:
        return str(policy.default.header_fetch_parse(name, raw))
    except Exception:  # noqa: BLE001 - the parser raises many errors on hostile headers
        return str(raw)


def subject(mail: EmailMessage) -> str:
    """Return the subject, or an empty string."""
    for name, raw in mail.raw_items():
        if name.lower() == "subject":
            return _decoded(name, raw)
    return ""


def mail_json(message: ReceivedMessage) -> dict[str, Any]:
    """Return a mail as JSON."""
    mail = parse_mail(message)
    return message_json(message) | {
        "from": message.sender,
        "subject": subject(mail),
        "headers": headers(mail),
        "text": part(mail, "plain"),
        "html": part(mail, "html"),
        "size": len(message.content),
    }
