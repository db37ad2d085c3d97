"""The SMS gateway: one HTTP request for each message, with a bearer token."""

import asyncio
import json
import warnings
from collections.abc import Awaitable, Callable
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
# Seconds that a token is valid, and seconds before its expiry when it is replaced, because clocks
# differ.
TOKEN_LIFETIME: Final = 300
TOKEN_MARGIN: Final = 60
# Bytes of a response: 100 times the longest one that contains `{"code": 0, …}`.
MAX_RESPONSE: Final = 65_536
# The operator chooses the gateway, so every address is allowed.
_ANY_ADDRESS: Final = Guard((ip_network("0.0.0.0/0"), ip_network("::/0")))


class TokenSource:
    """Bearer tokens (JWT) for the gateway; each one is reused until shortly before it expires."""

    def __init__(self, key: str, clock: Clock) -> None:
        with warnings.catch_warnings():
            # joserfc warns about short keys, but the gateway chooses the key.
            warnings.simplefilter("ignore", SecurityWarning)
            self._key = OctKey.import_key(key)
        self._clock = clock
        self._token = ""
        self._renew_at = 0.0

    def token(self) -> str:
        """Return a JWT that is valid for at least another minute."""
        now = self._clock.now()
        if now >= self._renew_at:
            claims = {"iss": ISSUER, "iat": int(now), "exp": int(now) + TOKEN_LIFETIME}
            self._token = jwt.encode({"alg": ALGORITHM, "typ": "JWT"}, claims, self._key)
            self._renew_at = now + TOKEN_LIFETIME - TOKEN_MARGIN
        return self._token


def gateway_client(*, timeout: float) -> Client:
    """Return the HTTP client for the gateway; it reads each response completely."""
    return Client(
        _ANY_ADDRESS,
        user_agent=f"Ringback/{VERSION}",
        connect_timeout=timeout,
        max_body=MAX_RESPONSE,
        excerpt=MAX_RESPONSE,
        body_timeout=timeout,
    )


class SmsGateway:
    """One SMS gateway. `timeout`: seconds for one request, including the whole response."""

    def __init__(
        self, url: str, client: Client, tokens: TokenSource, clock: Clock, *, timeout: float
    ) -> None:
        self._url = url
        self._client = client
        self._tokens = tokens
        self._clock = clock
        self._timeout = timeout

    @property
    def origin(self) -> str:
        """Return scheme, host and port: the name of the lane and the breaker."""
        return parse_target(self._url).origin

    async def send(
        self, message_id: str, command: SendSms, check: Callable[[], Awaitable[None]]
    ) -> int:
        """Send an SMS, and return the status of the response when the gateway has accepted it.

        `check` is awaited right before the request, and may raise to prevent it.

        Raises:
            PermanentError: the gateway refused this message for good.
            ProviderError: timeout, connection failure, overload or an invalid response.
            TransientError: the gateway refused this message for now.
        """
        target = parse_target(f"{self._url}/v1/send/{quote(message_id, safe='')}")
        body = {"id": message_id, "phone": command.phone, "text": command.text}
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {self._tokens.token()}",
        }
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.send(
                    target, "POST", headers, json.dumps(body).encode(), self._timeout, check
                )
        except TimeoutError:
            raise ProviderError(
                f"no complete response from {self.origin} in {self._timeout:g} s"
            ) from None
        except RequestFailedError as error:
            raise ProviderError(str(error)) from None
        domain.check_sms_response(
            response.status, response.retry_after, response.body, now=self._clock.now()
        )
        return response.status
