"""The OpenID provider of the sandbox: "sign in as …", with PKCE and signed tokens."""

import base64
import binascii
import hmac
import time
from collections.abc import Mapping
from html import escape
from ipaddress import ip_address
from typing import get_args
from urllib.parse import unquote_plus

from aiohttp import web
from pydantic import BaseModel, ConfigDict
from yarl import URL

from services.sandbox.layout import HEADERS, page_html
from services.sandbox.openid_tokens import (
    CODE_LIFETIME,
    PEOPLE,
    TOKEN_LIFETIME,
    Fault,
    Grant,
    Tokens,
)
from services.sandbox.parsing import parse
from services.sandbox.settings import OIDC_CLIENT_ID, OIDC_PATH

_NO_STORE = {"Cache-Control": "no-store"}
# The faults that the page offers, by the label of their button.
_BUTTONS: dict[str, Fault | None] = {"none": None, **{name: name for name in get_args(Fault)}}


class ProviderSettings(BaseModel):
    """The settings of the provider: what is wrong with its sign-ins, if anything."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    fault: Fault | None = None


class OpenIdProvider:
    """The HTTP handlers of the provider.

    url: the public URL of the sandbox; None for the one of the request.
    secret: the secret of the application.
    """

    def __init__(self, tokens: Tokens, url: URL | None, secret: str) -> None:
        self._tokens = tokens
        self._url = url
        self._secret = secret

    def routes(self) -> list[web.RouteDef]:
        """Return every route."""
        return [
            web.get(OIDC_PATH, self.page),
            web.post(f"{OIDC_PATH}/fault/{{name:{'|'.join(_BUTTONS)}}}", self.switch),
            web.get(f"{OIDC_PATH}/.well-known/openid-configuration", self.discovery),
            web.get(f"{OIDC_PATH}/jwks", self.jwks),
            web.get(f"{OIDC_PATH}/authorize", self.authorize),
            web.post(f"{OIDC_PATH}/token", self.token),
            web.get(f"{OIDC_PATH}/userinfo", self.userinfo),
            web.get(f"{OIDC_PATH}/end-session", self.end_session),
            web.get("/api/oidc", self.settings),
            web.put("/api/oidc", self.configure),
            web.post("/api/oidc/rotate", self.rotate),
        ]

    async def page(self, request: web.Request) -> web.Response:
        """Return the page that describes the provider."""
        fault = self._tokens.fault
        main = (
            "<h2>OpenID provider</h2><div class='card mailbox'>"
            f"<p>Issuer: <code>{escape(self._issuer(request))}</code></p>"
            f"<p>Client id: <code>{OIDC_CLIENT_ID}</code></p>"
            f"<p>Fault of the next sign-ins: {escape(fault or 'none')}</p>"
            f"{''.join(map(_button, _BUTTONS))}</div>"
            "<h2>People</h2>"
            + "".join(
                f"<article class='card delivery'><div class=line><span class=name>{person.name}"
                f"</span><span>{person.role}</span></div></article>"
                for person in PEOPLE.values()
            )
        )
        return web.Response(
            body=page_html(main, here=OIDC_PATH, json=("/api/oidc",)), headers=HEADERS
        )

    async def switch(self, request: web.Request) -> web.Response:
        """Give the provider this fault, and return to its page."""
        self._tokens.fault = _BUTTONS[request.match_info["name"]]
        raise web.HTTPSeeOther(OIDC_PATH)

    async def discovery(self, request: web.Request) -> web.Response:
        """Return the discovery document."""
        self._check_available()
        issuer = self._issuer(request)
        # Applications may reach the sandbox at another address than browsers.
        here = f"{request.url.origin()}{OIDC_PATH}"
        return web.json_response(
            {
                "issuer": issuer,
                "authorization_endpoint": f"{issuer}/authorize",
                "end_session_endpoint": f"{issuer}/end-session",
                "token_endpoint": f"{here}/token",
                "userinfo_endpoint": f"{here}/userinfo",
                "jwks_uri": f"{here}/jwks",
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
                "scopes_supported": ["openid", "profile", "email"],
                "token_endpoint_auth_methods_supported": [
                    "client_secret_basic",
                    "client_secret_post",
                ],
                "code_challenge_methods_supported": ["S256"],
                "authorization_response_iss_parameter_supported": True,
            }
        )

    async def jwks(self, _request: web.Request) -> web.Response:
        """Return the public keys."""
        self._check_available()
        return web.json_response(self._tokens.jwks())

    async def authorize(self, request: web.Request) -> web.Response:
        """Return the page with all people; with `as`, redirect to the application with a code."""
        query = request.query
        redirect_uri = query.get("redirect_uri", "")
        if query.get("client_id") != OIDC_CLIENT_ID or not _is_local(redirect_uri):
            # Never redirect to an address that may be somebody else's.
            raise web.HTTPBadRequest(
                text=f"client_id must be {OIDC_CLIENT_ID}, and redirect_uri a URL of this machine."
            )
        if error := _fault_of(query):
            return self._back(request, error=error)
        chosen = query.get("as")
        if chosen is None:
            return _choice(request.rel_url)
        person = PEOPLE.get(chosen)
        if person is None:
            return self._back(request, error="access_denied")
        grant = Grant(
            person,
            OIDC_CLIENT_ID,
            redirect_uri,
            query["code_challenge"],
            query.get("nonce"),
            time.time() + CODE_LIFETIME,
        )
        return self._back(request, code=self._tokens.code(grant))

    async def token(self, request: web.Request) -> web.Response:
        """Exchange a code for tokens."""
        self._check_available()
        form = await request.post()
        text = {name: value for name, value in form.items() if isinstance(value, str)}
        if not self._knows(request, text):
            return _error("invalid_client", 401)
        if text.get("grant_type") != "authorization_code":
            return _error("unsupported_grant_type")
        grant = self._tokens.redeem(
            text.get("code", ""),
            OIDC_CLIENT_ID,
            text.get("redirect_uri", ""),
            text.get("code_verifier", ""),
        )
        if grant is None:
            return _error("invalid_grant")
        tokens = {
            "access_token": self._tokens.access_token(grant.person),
            "token_type": "Bearer",
            "expires_in": int(TOKEN_LIFETIME),
            "id_token": self._tokens.id_token(self._issuer(request), grant, self._secret),
        }
        return web.json_response(tokens, headers=_NO_STORE)

    async def userinfo(self, request: web.Request) -> web.Response:
        """Return the claims about the person of an access token."""
        self._check_available()
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        person = self._tokens.person_of(token) if scheme.lower() == "bearer" else None
        if person is None:
            return web.json_response(
                {"error": "invalid_token"}, status=401, headers={"WWW-Authenticate": "Bearer"}
            )
        return web.json_response(self._tokens.claims_of(person), headers=_NO_STORE)

    async def end_session(self, request: web.Request) -> web.Response:
        """Return to the application: this provider remembers nobody."""
        url = request.query.get("post_logout_redirect_uri", "")
        if not _is_local(url):
            raise web.HTTPBadRequest(text="post_logout_redirect_uri must be on this machine.")
        return web.Response(status=302, headers={"Location": str(URL(url))})

    async def settings(self, _request: web.Request) -> web.Response:
        """Return the settings of the provider."""
        return web.json_response({"fault": self._tokens.fault})

    async def configure(self, request: web.Request) -> web.Response:
        """Replace the settings of the provider."""
        self._tokens.fault = parse(ProviderSettings, await request.read()).fault
        return web.json_response({"fault": self._tokens.fault})

    async def rotate(self, _request: web.Request) -> web.Response:
        """Replace the signing key."""
        self._tokens.rotate()
        return web.json_response(self._tokens.jwks())

    def _issuer(self, request: web.Request) -> str:
        return f"{self._url.origin() if self._url else request.url.origin()}{OIDC_PATH}"

    def _check_available(self) -> None:
        if self._tokens.fault == "unavailable":
            raise web.HTTPServiceUnavailable(text="The provider is set to be unavailable.")

    def _knows(self, request: web.Request, form: Mapping[str, str]) -> bool:
        """Return whether the application has proven that it knows its secret."""
        scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
        name, secret = form.get("client_id", ""), form.get("client_secret", "")
        if scheme.lower() == "basic":
            try:
                name, _, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
            except (binascii.Error, ValueError):
                return False
            name, secret = unquote_plus(name), unquote_plus(secret)
        known = hmac.compare_digest(secret.encode(), self._secret.encode())
        return name == OIDC_CLIENT_ID and known

    def _back(self, request: web.Request, **result: str) -> web.Response:
        query = {"iss": self._issuer(request), **result}
        if "state" in request.query:
            query["state"] = request.query["state"]
        url = URL(request.query["redirect_uri"]).update_query(query)
        return web.Response(status=302, headers={"Location": str(url), **_NO_STORE})


def _fault_of(query: Mapping[str, str]) -> str | None:
    """Return the error of a request for authorization (RFC 6749, 4.1.2.1), or None."""
    if query.get("response_type") != "code":
        return "unsupported_response_type"
    if "openid" not in query.get("scope", "").split():
        return "invalid_scope"
    if query.get("code_challenge_method") != "S256" or not query.get("code_challenge"):
        return "invalid_request"
    return None


def _choice(here: URL) -> web.Response:
    """Return the page with a link for each person."""
    links = "".join(
        f"<article class='card delivery'><div class=line><a class=name"
        f" href='{escape(str(here.update_query({'as': person.id})))}'>Sign in as {person.name}"
        f" ({person.role})</a></div></article>"
        for person in PEOPLE.values()
    )
    cancel = escape(str(here.update_query({"as": ""})))
    main = f"<h2>Sign in to the console of Ringback</h2>{links}<p><a href='{cancel}'>Cancel</a></p>"
    return web.Response(body=page_html(main, here=OIDC_PATH), headers=HEADERS)


def _button(name: str) -> str:
    return f"<form method=post action='{OIDC_PATH}/fault/{name}'><button>{name}</button></form>"


def _error(code: str, status: int = 400) -> web.Response:
    return web.json_response({"error": code}, status=status, headers=_NO_STORE)


def _is_local(text: str) -> bool:
    """Return whether a URL is one of this machine: the sandbox serves no other application."""
    try:
        url = URL(text)
        return url.scheme in ("http", "https") and (
            url.host == "localhost" or ip_address(url.host or "").is_loopback
        )
    except ValueError:
        return False
