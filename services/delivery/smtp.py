"""The mail server: connections that are kept and used again, one mail at a time on each."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Literal

from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPConnectResponseError,
    SMTPException,
    SMTPHeloError,
    SMTPResponseException,
    SMTPServerDisconnected,
)
from yarl import URL

from services.delivery.domain import ProviderError, refused
from shared.errors import PermanentError, TransientError

Tls = Literal["offered", "required", "off"]

# Seconds after which a connection is not used again: firewalls forget those that are idle, and a
# mail on one would wait for its time-out.
IDLE_SECONDS: Final = 30.0
# Seconds to take leave of the server at the end.
QUIT_SECONDS: Final = 1.0
PORTS: Final = {"smtp": 25, "smtps": 465}
_START_TLS: Final = {"offered": None, "required": True, "off": False}
_STEPS: Final[dict[type, str]] = {
    SMTPConnectResponseError: "connecting",
    SMTPHeloError: "EHLO",
    SMTPAuthenticationError: "the login",
}


class _StaleConnectionError(ProviderError):
    """Nothing was begun on the connection: another may do."""


class MailServer:
    """One mail server; how many mails go there at a time is the caller's business.

    `timeout`: seconds for one mail, connecting included. `tls`: whether smtp:// uses STARTTLS.
    Certificates are checked by the system's authorities, or by `trust` in their place.
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
        self._idle: list[tuple[SMTP, float]] = []  # the one used last is at the end
        self._name: str | None = None  # this machine's, once it is known

    @property
    def origin(self) -> str:
        """The server as its lane and breaker are named: no user, no password."""
        return f"{self._url.scheme}://{self._url.host}:{self._port}"

    async def send(
        self, sender: str, recipient: str, content: bytes, check: Callable[[], None]
    ) -> None:
        """Hand a mail over; the server has taken it when this returns.

        `check` is called right before the content goes out, and may raise to keep it back.

        Raises:
            PermanentError: the server refuses this mail for good.
            ProviderError: it is not there, does not answer in time, or not as a mail server does.
            TransientError: it refuses this mail for now.
        """
        try:
            async with asyncio.timeout(self._timeout):
                while smtp := self._kept():
                    with suppress(_StaleConnectionError):  # the server has closed it meanwhile
                        return await self._send_on(smtp, sender, recipient, content, check)
                smtp = await self._connected()
                return await self._send_on(smtp, sender, recipient, content, check)
        except TimeoutError:
            raise ProviderError(
                f"{self.origin} did not take it within {self._timeout:g} s"
            ) from None

    async def close(self) -> None:
        """Take leave on all connections that are idle."""
        idle, self._idle = self._idle, []
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIT_SECONDS):
                await asyncio.gather(*(smtp.quit() for smtp, _ in idle), return_exceptions=True)
        for smtp, _ in idle:
            smtp.close()

    def _kept(self) -> SMTP | None:
        oldest = asyncio.get_running_loop().time() - IDLE_SECONDS
        while self._idle:
            smtp, since = self._idle.pop()
            if smtp.is_connected and since > oldest:
                return smtp
            smtp.close()
        return None

    async def _connected(self) -> SMTP:
        smtp = SMTP(
            hostname=self._url.host,
            port=self._port,
            username=self._url.user,
            password=self._url.password,
            local_hostname=self._name,
            timeout=None,  # one for all of it stands in `send`
            use_tls=self._tls,
            start_tls=self._start_tls,
            tls_context=self._trust,
        )
        try:
            await smtp.connect()
        except SMTPResponseException as error:
            step = _STEPS.get(type(error), "STARTTLS")
            raise ProviderError(f"{self.origin} answered {error.code} to {step}") from None
        except (SMTPException, OSError) as error:  # names the server, and no more than that
            raise ProviderError(f"{self.origin}: {error}") from None
        self._name = smtp.local_hostname
        return smtp

    async def _send_on(
        self,
        smtp: SMTP,
        sender: str,
        recipient: str,
        content: bytes,
        check: Callable[[], None],
    ) -> None:
        fit = False
        try:
            try:
                await self._told("MAIL", smtp.mail(sender))
            except ProviderError as error:
                raise _StaleConnectionError(str(error)) from None
            await self._told("RCPT", smtp.rcpt(recipient))
            check()
            await self._told("DATA", smtp.data(content))
            fit = True
        except ProviderError:
            raise
        except (PermanentError, TransientError):
            # This mail is refused or kept back; the connection will do for the next one.
            with suppress(SMTPException):
                await smtp.rset()
                fit = True
            raise
        finally:
            if fit and smtp.is_connected:
                self._idle.append((smtp, asyncio.get_running_loop().time()))
            else:
                smtp.close()

    async def _told(self, step: str, command: Awaitable[object]) -> None:
        try:
            await command
        except SMTPResponseException as error:
            raise refused(error.code, error.message, step) from None
        except SMTPServerDisconnected:
            raise ProviderError(f"{self.origin} closed the connection at {step}") from None
