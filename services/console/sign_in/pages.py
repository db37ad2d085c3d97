"""The pages of sign-in: the redirect to the provider, the way back, and the sign-out."""

import logging
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from aiohttp import web

from services.console.metrics import SIGN_INS
from services.console.pages.declaration import Page
from services.console.security import (
    ATTEMPT_COOKIE,
    SESSION_COOKIE,
    delete_cookie,
    set_cookie,
)
from services.console.sign_in import attempts
from services.console.sign_in.errors import Reason, SignInError
from services.console.sign_in.provider import Provider
from services.console.sign_in.roles import Role, role_of
from services.console.sign_in.sessions import Sessions, user_of
from services.console.visit import Visit
from shared.http.client_address import client_address
from shared.http.rate_limit import RateLimiter

logger = logging.getLogger(__name__)

SIGN_IN: Final = "/sign-in"
CALLBACK: Final = "/sign-in/callback"
SIGNED_OUT: Final = "/signed-out"
# Parameter of SIGN_IN: the path to return to.
NEXT: Final = "next"
# Sign-ins from one address in SPAN seconds. Each one is a request to the provider.
MAX_SIGN_INS: Final = 100
SPAN: Final = 60.0
# Attempts of one browser at the same time: its windows. Beyond that the cookies would add up.
MAX_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class RoleClaim:
    """The claim with the roles of a user, and the role for each of its values."""

    claim: str
    names: dict[str, str]


class SignIn:
    """The handlers of sign-in and sign-out.

    address_header: the header in which a proxy reports the address of the browser, if there is one.
    """

    def __init__(
        self,
        provider: Provider,
        sessions: Sessions,
        roles: RoleClaim,
        *,
        address_header: str | None = None,
    ) -> None:
        self._provider = provider
        self._sessions = sessions
        self._roles = roles
        self._address_header = address_header
        self._limiter = RateLimiter(MAX_SIGN_INS, SPAN)

    def pages(self) -> tuple[Page, ...]:
        """Return the declarations."""
        return (
            Page("GET", SIGN_IN, None, "Sign in", self.start),
            Page("GET", CALLBACK, None, "Sign in", self.finish),
            Page("POST", "/sign-out", Role.VIEWER, "Sign out", self.sign_out),
            Page("GET", SIGNED_OUT, None, "Signed out", self.signed_out),
        )

    async def start(self, visit: Visit) -> web.StreamResponse:
        """Redirect to the provider."""
        attempt = attempts.new_attempt(visit.query.get(NEXT, "/"))
        try:
            url = await self._provider.authorization_url(attempt, _redirect_uri(visit))
        except SignInError as error:
            return _failed(visit, error)
        response = visit.redirect(str(url))
        open_attempts = _attempt_cookies(visit)
        if len(open_attempts) >= MAX_ATTEMPTS:
            for name in open_attempts:
                delete_cookie(response, name)
        name = f"{ATTEMPT_COOKIE}{attempt.name}"
        set_cookie(response, name, attempt.encode(), max_age=attempts.LIFETIME)
        return response

    async def finish(self, visit: Visit) -> web.StreamResponse:
        """Check what the provider sent, and start a session."""
        state = visit.query.get("state", "")
        cookie = f"{ATTEMPT_COOKIE}{state[: attempts.NAME_LENGTH]}"
        attempt = attempts.decode(visit.request.cookies.get(cookie, ""), state)
        try:
            response = await self._finish(visit, attempt)
        except SignInError as error:
            response = _failed(visit, error)
        if cookie in visit.request.cookies:
            delete_cookie(response, cookie)
        return response

    async def _finish(self, visit: Visit, attempt: attempts.Attempt | None) -> web.Response:
        if attempt is None:
            raise SignInError(Reason.ATTEMPT, "state is not that of a sign-in in this browser")
        code = visit.query.get("code")
        if code is None:
            # Its text is not shown: anybody could write it into a link.
            raise SignInError(Reason.DENIED, "the provider returned an error instead of a code")
        address = client_address(visit.request, self._address_header)
        if self._limiter.delay(address, time.monotonic()):
            raise SignInError(Reason.TOO_MANY, "this address has started too many sign-ins")
        claims = await self._provider.claims(
            code, attempt, _redirect_uri(visit), visit.query.get("iss")
        )
        role = role_of(claims, self._roles.claim, self._roles.names)
        user = user_of(self._provider.issuer, claims)
        if role is None:
            raise SignInError(
                Reason.NO_ROLE, f"the claim {self._roles.claim} names no role of the console"
            )
        # A new cookie, and the end of the one that the browser had: nobody can choose a session.
        await self._end(visit)
        session = await self._sessions.start(user, role)
        SIGN_INS.labels("signed_in").inc()
        logger.info("user signed in", extra={"subject": user.subject, "role": str(role)})
        response = visit.redirect(attempt.path)
        set_cookie(response, SESSION_COOKIE, session)
        return response

    async def sign_out(self, visit: Visit) -> web.StreamResponse:
        """End the session."""
        await self._end(visit)
        assert visit.session is not None  # noqa: S101 - the page requires a role
        logger.info("user signed out", extra={"subject": visit.session.subject})
        response = visit.redirect(SIGNED_OUT)
        delete_cookie(response, SESSION_COOKIE)
        return response

    async def signed_out(self, visit: Visit) -> web.StreamResponse:
        """Return the page after the sign-out, which also links to that of the provider."""
        url = await self._provider.sign_out_url(f"{visit.site.origin}{SIGNED_OUT}")
        return visit.render("signed_out.html", provider_url=None if url is None else str(url))

    async def _end(self, visit: Visit) -> None:
        cookie = visit.request.cookies.get(SESSION_COOKIE)
        if cookie is not None:
            await self._sessions.end(cookie)


def _redirect_uri(visit: Visit) -> str:
    return f"{visit.site.origin}{CALLBACK}"


def _attempt_cookies(visit: Visit) -> list[str]:
    return [name for name in visit.request.cookies if name.startswith(ATTEMPT_COOKIE)]


def _failed(visit: Visit, error: SignInError) -> web.Response:
    """Return the page that says why the sign-in failed, and what to do."""
    reason = error.reason
    SIGN_INS.labels(reason.code).inc()
    logger.warning("sign-in failed", extra={"reason": reason.code, "detail": str(error)})
    later = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)
    headers = {"Retry-After": "5"} if reason.status in later else None
    return visit.render(
        "error.html",
        status=reason.status,
        headers=headers,
        heading=reason.heading,
        detail=f"{str(error)[:1].upper()}{str(error)[1:]}.",
        advice=reason.advice,
        errors=(),
        retry=SIGN_IN,
        retry_title="Sign in again",
    )
