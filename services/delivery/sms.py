"""The SMS gateway: one request a message, with a token made of the key."""

import asyncio
import json
import warnings
from collections.abc import Callable
from ipaddress import ip_network
from typing import Final
from urllib.parse import quote

from joserfc import jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import OctKey

from services.delivery import domain
from services.delivery.domain import ProviderError
from shared.clock import Clock
from shared.contracts.messages import SendSms
from shared.http.client import Client, RequestFailedError
from shared.http.guard import Guard, parse_target
from shared.version import VERSION

ALGORITHM: Final = "HS256"
ISSUER: Final = "ringback"
# Seconds a token is valid for, and how long before its end it is not used any more: clocks differ.
LIFETIME: Final = 300
MARGIN: Final = 60
# Bytes of an answer: the longest that says `{"code": 0, …}` is a hundredth of it.
MAX_ANSWER: Final = 65_536
# The gateway is the operator's choice, not a caller's.
_ANYWHERE: Final = Guard((ip_network("0.0.0.0/0"), ip_network("::/0")))


class Tokens:
    """Bearer tokens of one key: a JWT is made once and shown until it is near its end."""

    def __init__(self, key: str, clock: Clock) -> None:
        with warnings.catch_warnings():
            # Of a short key, which is the gateway's choice, not ours.
            warnings.simplefilter("ignore", SecurityWarning)
            self._key = OctKey.import_key(key)
        self._clock = clock
        self._token = ""
        self._until = 0.0

    def token(self) -> str:
        """A JWT that is valid for another minute at least."""
        now = self._clock.now()
        if now >= self._until:
            claims = {"iss": ISSUER, "iat": int(now), "exp": int(now) + LIFETIME}
            self._token = jwt.encode({"alg": ALGORITHM, "typ": "JWT"}, claims, self._key)
            self._until = now + LIFETIME - MARGIN
        return self._token


def client(*, timeout: float) -> Client:
    """The HTTP client for the gateway: it may go anywhere, and waits for the whole answer."""
    return Client(
        _ANYWHERE,
        user_agent=f"Ringback/{VERSION}",
        connect_timeout=timeout,
        max_body=MAX_ANSWER,
        excerpt=MAX_ANSWER,
        body_timeout=timeout,
    )


class Gateway:
    """One SMS gateway. `timeout`: seconds for one request, its whole answer included."""

    def __init__(
        self, url: str, client: Client, tokens: Tokens, clock: Clock, *, timeout: float
    ) -> None:
        self._url = url
        self._client = client
        self._tokens = tokens
        self._clock = clock
        self._timeout = timeout

    @property
    def origin(self) -> str:
        """The gateway as its lane and breaker are named: scheme, host and port."""
        return parse_target(self._url).origin

    async def send(self, message_id: str, order: SendSms, check: Callable[[], None]) -> None:
        """Hand an SMS over; the gateway has taken it when this returns.

        `check` is called right before, and may raise to keep it back.

        Raises:
            PermanentError: the gateway refuses this message for good.
            ProviderError: it does not answer in time, not as it should, or is overloaded.
            TransientError: it refuses this message for now.
        """
        target = parse_target(f"{self._url}/v1/send/{quote(message_id, safe='')}")
        body = {"id": message_id, "phone": order.phone, "text": order.text}
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {self._tokens.token()}",
        }
        check()
        try:
            async with asyncio.timeout(self._timeout):
                reply = await self._client.send(
                    target, "POST", headers, json.dumps(body).encode(), self._timeout
                )
        except TimeoutError:
            raise ProviderError(
                f"no whole answer from {self.origin} in {self._timeout:g} s"
            ) from None
        except RequestFailedError as error:
            raise ProviderError(str(error)) from None
        domain.judge(reply.status, reply.retry_after, reply.body, now=self._clock.now())
