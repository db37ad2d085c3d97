"""Name look-ups of the guarded client: permitted addresses only, and the cause of a failure."""

from __future__ import annotations

import socket
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from aiodns.error import ARES_ECONNREFUSED, ARES_ETIMEOUT
from aiohttp.abc import AbstractResolver

from shared.errors import DeferredError
from shared.http.guard import ForbiddenTargetError, forbidden

if TYPE_CHECKING:
    from aiohttp.abc import ResolveResult

    from shared.http.guard import Guard

# Names whose permitted addresses are remembered.
_MAX_NAMES: Final = 10_000
# Names that got no answer in a row, after which the name server is considered down. A single one
# may have a domain whose own name servers do not respond.
_MAX_UNANSWERED: Final = 5
# Seconds until the name server may be up again.
_DOWN_DELAY: Final = 15.0


class CheckedResolver(AbstractResolver):
    """A resolver that returns only permitted addresses."""

    def __init__(self, guard: Guard, resolver: AbstractResolver) -> None:
        self._guard = guard
        self._resolver = resolver
        self._permitted: OrderedDict[str, None] = OrderedDict()  # names that had such an address
        self._unanswered: set[str] = set()  # names without an answer, since the last answer

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the permitted addresses of a name.

        Raises:
            ForbiddenTargetError: it has no permitted address, and had none before.
            OSError: the look-up failed, or the name had a permitted address before, so that this
                may be a mistake in DNS.
            DeferredError: the name server is down. The target is not the cause.
        """
        try:
            addresses = await self._resolver.resolve(host, port, family)
        except OSError as error:
            if self._is_down(host, error):
                raise DeferredError("the name server is down", delay=_DOWN_DELAY) from error
            raise
        self._unanswered.clear()
        permitted = [address for address in addresses if self._guard.permits(address["host"])]
        if permitted:
            self._remember(host)
            return permitted
        reason = forbidden(host, addresses[0]["host"])
        if host in self._permitted:
            raise OSError(None, reason)
        raise ForbiddenTargetError(reason)

    async def close(self) -> None:
        """Close the resolver."""
        await self._resolver.close()

    def _remember(self, host: str) -> None:
        self._permitted[host] = None
        self._permitted.move_to_end(host)
        if len(self._permitted) > _MAX_NAMES:
            self._permitted.popitem(last=False)

    def _is_down(self, host: str, error: OSError) -> bool:
        """Return whether a failed look-up shows that the name server is down."""
        code = getattr(error.__cause__, "args", (None,))[0]
        if code not in (ARES_ECONNREFUSED, ARES_ETIMEOUT):
            self._unanswered.clear()  # the name server has answered
            return False
        if socket_error() is not None:  # the query could not be sent
            return False
        if len(self._unanswered) < _MAX_UNANSWERED:
            self._unanswered.add(host)
        return code == ARES_ECONNREFUSED or len(self._unanswered) == _MAX_UNANSWERED


def socket_error() -> int | None:
    """Return why this machine cannot open a socket now, or None."""
    try:
        socket.socket().close()
    except OSError as error:
        return error.errno
    return None
