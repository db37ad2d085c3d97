"""The mail server: a pool of connections, with one mail at a time on each."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPConnectResponseError,
    SMTPException,
    SMTPHeloError,
    SMTPResponseException,
    SMTPServerDisconnected,
    SMTPStatus,
)
from yarl import URL

from services.delivery.domain import SERVER_BUSY, BusyError, ProviderError, smtp_error
from services.delivery.settings import Tls
from shared.contracts.messages import SANDBOX_DOMAIN, SANDBOX_EXTENSION
from shared.errors import PermanentError, TransientError

# Seconds after which an idle connection is not reused: firewalls drop idle connections silently,
# and a mail on such a connection would wait for its timeout.
IDLE_LIFETIME: Final = 30.0
# Seconds to send QUIT on all connections at shutdown.
QUIT_TIMEOUT: Final = 1.0
PORTS: Final = {"smtp": 25, "smtps": 465}
_START_TLS: Final = {"offered": None, "required": True, "off": False}
# RFC 4954: the server does not support the mechanism, although it offers it.
_UNSUPPORTED_MECHANISM: Final = 504
_STEPS: Final[dict[type, str]] = {
    SMTPConnectResponseError: "connecting",
    SMTPHeloError: "EHLO",
    SMTPAuthenticationError: "login",
}


Check = Callable[[], Awaitable[None]]


class _StaleConnectionError(ProviderError):
    """The connection failed before the mail was started on it, so another one may work."""


class MailServer:
    """One mail server. The caller limits the number of mails in flight.

    timeout: seconds for one mail, including connecting. tls: whether smtp:// uses STARTTLS.
    trust: verifies certificates in place of the system's authorities.
    """

    def __init__(
        self, url: str, *, tls: Tls, timeout: float, trust: ssl.SSLContext | None = None
    ) -> None:
        self._url = URL(url)
        self._port = self._url.explicit_port or PORTS[self._url.scheme]
        self._tls = self._url.scheme == "smtps"
        self._start_tls = False if self._tls else _START_TLS[tls]
        self._timeout = timeout
        self._trust = trust or ssl.create_default_context()
        self._idle: list[tuple[SMTP, float]] = []  # the most recently used one is last
        self._hostname: str | None = None  # of this machine, resolved by the first connection

    @property
    def origin(self) -> str:
        """Return scheme, host and port: the name of the lane and the breaker."""
        return f"{self._url.scheme}://{self._url.host}:{self._port}"

    async def send(self, sender: str, recipient: str, content: bytes, check: Check) -> int:
        """Send a mail, and return the code of the response when the server has accepted it.

        `content` begins with a header, and its only line ends are CRLF.
        `check` is awaited right before the content goes out, and may raise to prevent that.

        Raises:
            PermanentError: the server refused this mail for good.
            BusyError: the server has too many connections, and did not accept the mail.
            ProviderError: timeout, connection failure or a protocol error.
            TransientError: the server refused this mail for now.
        """
        try:
            async with asyncio.timeout(self._timeout):
                while smtp := self._reusable():
                    with suppress(_StaleConnectionError):  # the server has closed it
                        return await self._send_on(
                            smtp, sender, recipient, content, check, is_reused=True
                        )
                smtp = await self._connect()
                return await self._send_on(smtp, sender, recipient, content, check, is_reused=False)
        except TimeoutError:
            raise ProviderError(
                f"{self.origin} did not accept the mail within {self._timeout:g} s"
            ) from None

    async def close(self) -> None:
        """Close all idle connections."""
        idle, self._idle = self._idle, []
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIT_TIMEOUT):
                await asyncio.gather(*(smtp.quit() for smtp, _ in idle), return_exceptions=True)
        for smtp, _ in idle:
            smtp.close()

    def _reusable(self) -> SMTP | None:
        oldest = asyncio.get_running_loop().time() - IDLE_LIFETIME
        while self._idle:
            smtp, since = self._idle.pop()
            if smtp.is_connected and since > oldest:
                return smtp
            smtp.close()
        return None

    async def _connect(self) -> SMTP:
        smtp = SMTP(
            hostname=self._url.host,
            port=self._port,
            local_hostname=self._hostname,
            timeout=None,  # `send` limits the whole exchange
            use_tls=self._tls,
            start_tls=self._start_tls,
            tls_context=self._trust,
        )
        try:
            await smtp.connect()
            await _greet(smtp)
            await self._log_in(smtp)
        except SMTPResponseException as error:
            smtp.close()
            step = _STEPS.get(type(error), "STARTTLS")
            kind = BusyError if error.code == SERVER_BUSY else ProviderError
            raise kind(f"{self.origin} responded with {error.code} to {step}") from None
        except (SMTPException, OSError) as error:  # its text names only the server
            smtp.close()
            raise ProviderError(f"{self.origin}: {error}") from None
        self._hostname = smtp.local_hostname
        return smtp

    async def _log_in(self, smtp: SMTP) -> None:
        """Log in by one mechanism: each refused one counts towards the lock of an account."""
        user, password = self._url.user, self._url.password
        if user is None or password is None:
            return
        mechanisms = smtp.supported_auth_methods
        if not mechanisms:
            raise SMTPException("the server offers no mechanism to log in")
        for mechanism in mechanisms:
            log_in = getattr(smtp, f"auth_{mechanism.replace('-', '')}")
            try:
                await log_in(user, password)
            except SMTPAuthenticationError as error:
                if error.code != _UNSUPPORTED_MECHANISM or mechanism == mechanisms[-1]:
                    raise
            else:
                return

    async def _send_on(  # noqa: PLR0913 - the parts of a mail
        self,
        smtp: SMTP,
        sender: str,
        recipient: str,
        content: bytes,
        check: Check,
        *,
        is_reused: bool,
    ) -> int:
        reusable = False
        try:
            parameters = _parameters(smtp, recipient)
            try:
                await self._run("MAIL", _envelope(smtp, f"MAIL FROM:<{sender}>{parameters}"))
            except ProviderError as error:
                if is_reused:
                    raise _StaleConnectionError(str(error)) from None
                raise
            await self._run("RCPT", _envelope(smtp, f"RCPT TO:<{recipient}>"))
            await check()
            code = await self._run("DATA", _data(smtp, content, check))
            reusable = True
        except ProviderError:
            raise
        except (PermanentError, TransientError):
            # This mail is refused or expired, but the connection works for the next one.
            with suppress(SMTPException):
                await smtp.rset()
                reusable = True
            raise
        finally:
            if reusable and smtp.is_connected:
                self._idle.append((smtp, asyncio.get_running_loop().time()))
            else:
                smtp.close()
        return code

    async def _run(self, step: str, command: Awaitable[int]) -> int:
        try:
            return await command
        except SMTPResponseException as error:
            raise smtp_error(error.code, error.message, step) from None
        except SMTPServerDisconnected:
            raise ProviderError(f"{self.origin} closed the connection at {step}") from None


def _parameters(smtp: SMTP, recipient: str) -> str:
    """Return the parameters of MAIL that a recipient's address needs.

    Raises:
        PermanentError: this server cannot deliver to the address.
    """
    if recipient.endswith(SANDBOX_DOMAIN) and not smtp.supports_extension(SANDBOX_EXTENSION):
        raise PermanentError(f"a domain in {SANDBOX_DOMAIN} exists in the sandbox only")
    if recipient.isascii():
        return ""
    if not smtp.supports_extension("smtputf8"):
        raise PermanentError("the mail server does not support addresses outside ASCII (SMTPUTF8)")
    return " SMTPUTF8"


async def _greet(smtp: SMTP) -> None:
    """Send EHLO, or HELO to an old server, unless that was done to negotiate TLS."""
    if smtp.is_ehlo_or_helo_needed:
        try:
            await smtp.ehlo()
        except SMTPHeloError:
            if not smtp.is_connected:
                raise
            await smtp.helo()


# The next two replace `SMTP.mail`, `rcpt` and `data`, which parse each address and normalise the
# content by regular expressions. That is 45 µs of CPU for a mail of 2 kB (measured on a 2-core
# development machine).
async def _envelope(smtp: SMTP, command: str) -> int:
    response = await smtp.execute_command(command.encode())
    if response.code not in (SMTPStatus.completed, SMTPStatus.will_forward):
        raise SMTPResponseException(response.code, response.message)
    return response.code


async def _data(smtp: SMTP, content: bytes, check: Check) -> int:
    response = await smtp.execute_command(b"DATA")
    if response.code == SMTPStatus.start_input and smtp.protocol is not None:
        try:
            await check()  # again: the server may have kept us waiting
        except BaseException:
            smtp.close()  # the server drops an unfinished mail; any command would be a part of it
            raise
        end = b".\r\n" if content.endswith(b"\r\n") else b"\r\n.\r\n"
        smtp.protocol.write(content.replace(b"\r\n.", b"\r\n..") + end)
        response = await smtp.protocol.read_response()
        if response.code == SMTPStatus.completed:
            return response.code
    raise SMTPResponseException(response.code, response.message)
