"""The rate limits of the messenger per address, user name and user. Each process has its own."""

import math
import time
from http import HTTPStatus
from typing import Final

from aiohttp import web

from services.gateway.messenger.codes import Code, coded_error
from services.gateway.settings import GatewaySettings
from shared.contracts.users import MAX_NAME
from shared.http.client_address import client_address
from shared.http.problem import ProblemError
from shared.http.rate_limit import MAX_CLIENTS, RateLimiter

MINUTE: Final = 60.0


class Limits:
    """Counts requests, and rejects those beyond a limit.

    The methods `count_…` raise ProblemError: 429 with the seconds to wait.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._header = settings.address_header
        self._registrations = RateLimiter(settings.registrations_per_address, MINUTE)
        self._addresses = RateLimiter(settings.sign_ins_per_address, MINUTE)
        self._names = RateLimiter(settings.sign_ins_per_name, MINUTE)
        self._messages = RateLimiter(settings.messages_per_user, MINUTE)
        self._message_addresses = RateLimiter(settings.messages_per_address, MINUTE)
        self._callbacks = RateLimiter(settings.callbacks_per_user, MINUTE)
        self._users: dict[str, int] = {}

    def count_registration(self, request: web.Request) -> None:
        """Count a registration from the address of this request."""
        _count(self._registrations, self.address(request))

    def count_sign_in_from(self, request: web.Request) -> None:
        """Count a sign-in from the address of this request."""
        _count(self._addresses, self.address(request))

    def count_sign_in_as(self, name: str) -> None:
        """Count a sign-in with this name. All names that are too long count together."""
        _count(self._names, name if len(name) <= MAX_NAME else "")

    def count_message_from(self, request: web.Request) -> None:
        """Count a message from the address of this request."""
        _count(self._message_addresses, self.address(request))

    def count_message(self, token_hash: str) -> None:
        """Count a message of the user of this token.

        A token that another process created is counted on its own until a message is sent with it.
        """
        _count(self._messages, self._user(token_hash))

    def count_callback(self, token_hash: str) -> None:
        """Count a start or a test of a callback, by the user of this token, as for messages.

        Each causes requests to a server that the user chooses.
        """
        _count(self._callbacks, self._user(token_hash))

    def remember_user(self, token_hash: str, user_id: int) -> None:
        """Count requests with this token as those of its user from now on."""
        self._users.pop(token_hash, None)
        self._users[token_hash] = user_id
        if len(self._users) > MAX_CLIENTS:
            del self._users[next(iter(self._users))]  # the one that was used least recently

    def _user(self, token_hash: str) -> str:
        return str(self._users.get(token_hash, token_hash))

    def address(self, request: web.Request) -> str:
        """Return the address of the client: from the proxy's header, or of the connection."""
        return client_address(request, self._header)


def _count(limiter: RateLimiter, key: str) -> None:
    delay = limiter.delay(key, time.monotonic())
    if delay > 0:
        raise too_many(delay)


def too_many(delay: float) -> ProblemError:
    """Return the error 429: the request may be repeated after `delay` seconds."""
    return coded_error(
        HTTPStatus.TOO_MANY_REQUESTS,
        Code.TRY_AGAIN_LATER,
        "the limit is exceeded",
        headers={"Retry-After": f"{math.ceil(delay)}"},
    )
