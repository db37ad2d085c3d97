"""The OpenID provider: discovery, its keys, and the exchange of a code for claims."""

import asyncio
import json
import math
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote_plus

import aiohttp
from joserfc.jwk import Key
from yarl import URL

from services.console.settings import ConsoleSettings
from services.console.sign_in.attempts import Attempt, challenge
from services.console.sign_in.errors import Reason, SignInError
from services.console.sign_in.id_tokens import (
    Expected,
    UnknownKeyError,
    provider_keys,
    verified_claims,
)
from services.console.sign_in.metadata import Metadata, parse_metadata

SCOPE: Final = "openid profile email"
# Seconds for one request to the provider. A user waits for three of them.
TIMEOUT: Final = 8.0
# Bytes of a response. The largest, a key set with certificates, has some 20,000.
MAX_RESPONSE: Final = 262_144
# Seconds for which metadata and keys are kept. A revoked key is refused after that time.
METADATA_LIFETIME: Final = 3600.0
KEYS_LIFETIME: Final = 300.0
# Seconds between two look-ups of an unknown key. Anyone with a stolen code could cause them.
REFETCH_INTERVAL: Final = 60.0
# Seconds for which a failed discovery counts. Otherwise all users would wait one after the other.
FAILURE_LIFETIME: Final = 2.0
# The errors of a token endpoint (RFC 6749, 5.2). Others are not shown: their text is not ours.
_TOKEN_ERRORS: Final = frozenset(
    {
        "invalid_request",
        "invalid_client",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
    }
)


class Provider:
    """The provider of one issuer. What it publishes is kept for a while."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        issuer: str,
        discovery_url: str | None,
        client_id: str,
        client_secret: str | None,
    ) -> None:
        self.issuer = issuer
        self.client_id = client_id
        self._session = session
        well_known = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
        self._discovery_url = discovery_url or well_known
        self._client_secret = client_secret
        self._metadata: Metadata | None = None
        self._metadata_at = -math.inf
        self._failure = SignInError(Reason.UNAVAILABLE, "")
        self._failed_at = -math.inf
        self._keys: list[Key] = []
        self._keys_at = -math.inf
        self._fetching = asyncio.Lock()

    @classmethod
    def of(
        cls, settings: ConsoleSettings, issuer: str, session: aiohttp.ClientSession
    ) -> "Provider":
        """Return the provider that is configured."""
        secret = settings.oidc_client_secret
        return cls(
            session,
            issuer=issuer,
            discovery_url=settings.oidc_discovery_url,
            client_id=settings.oidc_client_id,
            client_secret=None if secret is None else secret.get_secret_value(),
        )

    async def authorization_url(self, attempt: Attempt, redirect_uri: str) -> URL:
        """Return the URL of the provider at which the user signs in.

        Raises:
            SignInError: the provider is unavailable or misconfigured.
        """
        endpoint = URL((await self.metadata()).authorization_endpoint)
        return endpoint.update_query(
            response_type="code",
            client_id=self.client_id,
            redirect_uri=redirect_uri,
            scope=SCOPE,
            state=attempt.state,
            nonce=attempt.nonce,
            code_challenge=challenge(attempt.verifier),
            code_challenge_method="S256",
        )

    async def sign_out_url(self, return_to: str) -> URL | None:
        """Return the URL at which a user signs out of the provider, if it has one."""
        try:
            endpoint = (await self.metadata()).end_session_endpoint
        except SignInError:
            return None
        if endpoint is None:
            return None
        return URL(endpoint).update_query(
            client_id=self.client_id, post_logout_redirect_uri=return_to
        )

    async def claims(
        self, code: str, attempt: Attempt, redirect_uri: str, response_issuer: str | None
    ) -> Mapping[str, Any]:
        """Return the verified claims of the user that a code of the provider stands for.

        Those of the userinfo endpoint complete those of the ID token.

        Args:
            code: from the redirect of the provider.
            attempt: the sign-in that this browser has started.
            redirect_uri: as in `authorization_url`.
            response_issuer: the parameter `iss` of the redirect (RFC 9207).

        Raises:
            SignInError: the provider refused the code, or the token is not valid.
        """
        metadata = await self.metadata()
        if response_issuer != metadata.issuer and (
            response_issuer is not None or metadata.authorization_response_iss_parameter_supported
        ):
            raise SignInError(Reason.ISSUER, "iss of the redirect is not the configured issuer")
        tokens = await self._exchange(metadata, code, attempt, redirect_uri)
        token = tokens.get("id_token")
        if not isinstance(token, str):
            raise SignInError(Reason.TOKEN, "the response of the token endpoint has no id_token")
        expected = Expected(self.issuer, self.client_id, attempt.nonce)
        claims = await self._verified(metadata, token, expected)
        return {**await self._userinfo(metadata, tokens, claims), **claims}

    async def metadata(self) -> Metadata:
        """Return the discovery document, which is kept for METADATA_LIFETIME.

        Raises:
            SignInError: the provider is unavailable, or its document is not valid.
        """
        async with self._fetching:
            if time.monotonic() - self._metadata_at >= METADATA_LIFETIME:
                await self._discover()
        assert self._metadata is not None  # noqa: S101 - set together with its time
        return self._metadata

    async def _discover(self) -> None:
        if time.monotonic() - self._failed_at < FAILURE_LIFETIME:
            raise SignInError(self._failure.reason, str(self._failure))
        try:
            content = await self._get(self._discovery_url, "the discovery document")
            self._metadata = parse_metadata(content, self.issuer, self._discovery_url)
        except SignInError as error:
            self._failure, self._failed_at = error, time.monotonic()
            raise
        self._metadata_at = time.monotonic()

    async def _verified(
        self, metadata: Metadata, token: str, expected: Expected
    ) -> Mapping[str, Any]:
        try:
            keys = await self._provider_keys(metadata, KEYS_LIFETIME)
            return verified_claims(token, keys, expected, time.time())
        except UnknownKeyError:
            # The provider may have rotated its keys.
            keys = await self._provider_keys(metadata, REFETCH_INTERVAL)
            return verified_claims(token, keys, expected, time.time())

    async def _provider_keys(self, metadata: Metadata, lifetime: float) -> list[Key]:
        """Return the keys of the provider, fetched at most `lifetime` seconds ago."""
        async with self._fetching:
            if time.monotonic() - self._keys_at >= lifetime:
                content = await self._get(metadata.jwks_uri, "the key set")
                try:
                    self._keys = provider_keys(content)
                except ValueError as error:
                    raise SignInError(Reason.CONFIGURATION, str(error)) from None
                self._keys_at = time.monotonic()
        return self._keys

    async def _exchange(
        self, metadata: Metadata, code: str, attempt: Attempt, redirect_uri: str
    ) -> Mapping[str, Any]:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": attempt.verifier,
        }
        headers = {}
        if self._client_secret is None:
            form["client_id"] = self.client_id
        elif "client_secret_basic" in metadata.token_endpoint_auth_methods_supported:
            # RFC 6749, 2.3.1: both parts are encoded as in a form.
            headers["Authorization"] = aiohttp.encode_basic_auth(
                quote_plus(self.client_id), quote_plus(self._client_secret)
            )
        else:
            form |= {"client_id": self.client_id, "client_secret": self._client_secret}
        status, content = await self._request(
            "POST", metadata.token_endpoint, "the token endpoint", data=form, headers=headers
        )
        if status != HTTPStatus.OK:
            error = content.get("error") if isinstance(content, Mapping) else None
            if error == "invalid_grant":
                raise SignInError(Reason.CODE, "the token endpoint responded with invalid_grant")
            known = error if error in _TOKEN_ERRORS else f"status {status}"
            failed = status >= HTTPStatus.INTERNAL_SERVER_ERROR
            reason = Reason.UNAVAILABLE if failed else Reason.CONFIGURATION
            raise SignInError(reason, f"the token endpoint responded with {known}")
        if not isinstance(content, Mapping):
            raise SignInError(Reason.TOKEN, "the response of the token endpoint is not an object")
        return content

    async def _userinfo(
        self, metadata: Metadata, tokens: Mapping[str, Any], claims: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Return the claims of the userinfo endpoint: many providers have roles only there."""
        access_token = tokens.get("access_token")
        if metadata.userinfo_endpoint is None or not isinstance(access_token, str):
            return {}
        headers = {"Authorization": f"Bearer {access_token}"}
        content = await self._get(metadata.userinfo_endpoint, "the userinfo endpoint", headers)
        if not isinstance(content, Mapping) or content.get("sub") != claims["sub"]:
            raise SignInError(Reason.TOKEN, "sub of the userinfo endpoint is another user")
        return content

    async def _get(self, url: str, what: str, headers: Mapping[str, str] | None = None) -> Any:
        status, content = await self._request("GET", url, what, headers=headers or {})
        if status != HTTPStatus.OK:
            raise SignInError(Reason.UNAVAILABLE, f"{what} responded with status {status}")
        return content

    async def _request(
        self, method: str, url: str, what: str, *, headers: Mapping[str, str], data: Any = None
    ) -> tuple[int, Any]:
        """Return the status and the JSON of a response; None if a failure has no JSON."""
        try:
            async with (
                asyncio.timeout(TIMEOUT),
                self._session.request(
                    method,
                    url,
                    headers={"Accept": "application/json", **headers},
                    data=data,
                    allow_redirects=False,
                ) as response,
            ):
                body = await _bounded(response.content)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise SignInError(
                Reason.UNAVAILABLE, f"{what} cannot be reached: {type(error).__name__}"
            ) from None
        try:
            return response.status, json.loads(body)
        except (ValueError, RecursionError):
            if response.status == HTTPStatus.OK:
                raise SignInError(Reason.UNAVAILABLE, f"{what} is not JSON") from None
            return response.status, None


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    """Return the whole body.

    Raises:
        ValueError: it is longer than MAX_RESPONSE.
    """
    body = b""
    while chunk := await content.read(MAX_RESPONSE + 1 - len(body)):
        body += chunk
        if len(body) > MAX_RESPONSE:
            raise ValueError("the response is too long")
    return body
