"""The headers of every response, the names of the cookies, and the check of forms."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiohttp import hdrs, web

# A cookie with this prefix is from this host only, was sent over https, and has no other path.
# Browsers accept it on http://127.0.0.1, too.
SESSION_COOKIE: Final = "__Host-ringback"
ATTEMPT_COOKIE: Final = "__Host-ringback-sign-in-"
NOTICE_COOKIE: Final = "__Host-ringback-notice"
# The time zone of the viewer. static/console.js sets it.
ZONE_COOKIE: Final = "ringback-timezone"

# Pages load scripts and styles from the console only, and run nothing inline. Even if received data
# became markup, it could run no script and load nothing.
_SHARED: Final = "base-uri 'none'; frame-ancestors 'none'"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    f" connect-src 'self'; form-action 'self'; {_SHARED}"
)
# Of a page that shows another one of the console in a frame.
FRAMING_POLICY: Final = f"{POLICY}; frame-src 'self'"
# Of a page in a frame with the HTML of an e-mail: its own styles, no script, no other host.
FRAMED_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none';"
    " base-uri 'none'; frame-ancestors 'self'; sandbox"
)
CONTENT_SECURITY_POLICY: Final = "Content-Security-Policy"
_HEADERS: Final = {
    CONTENT_SECURITY_POLICY: POLICY,
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: browsers would then send `Origin: null` with the console's own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    # Every page is for one user.
    hdrs.CACHE_CONTROL: "no-store",
}
_YEAR: Final = 31_536_000


def header_setter(
    origin: str,
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Return the signal handler that completes the headers of every response."""
    headers = dict(_HEADERS)
    if origin.startswith("https:"):
        headers["Strict-Transport-Security"] = f"max-age={_YEAR}"

    async def set_headers(_: web.Request, response: web.StreamResponse) -> None:
        for name, value in headers.items():
            response.headers.setdefault(name, value)
        # Older browsers know only this form of frame-ancestors.
        if "frame-ancestors 'none'" in response.headers[CONTENT_SECURITY_POLICY]:
            response.headers["X-Frame-Options"] = "DENY"

    return set_headers


def set_cookie(
    response: web.StreamResponse, name: str, value: str, *, max_age: int | None = None
) -> None:
    """Set a cookie that scripts cannot read, and that requests of other sites do not carry."""
    response.set_cookie(
        name, value, max_age=max_age, path="/", secure=True, httponly=True, samesite="Lax"
    )


def delete_cookie(response: web.StreamResponse, name: str) -> None:
    """Delete a cookie of `set_cookie`."""
    response.del_cookie(name, path="/", secure=True, httponly=True, samesite="Lax")


def is_from_this_site(headers: Mapping[str, str], origin: str) -> bool:
    """Return whether a form was sent by a page of the console, as far as its headers say.

    Browsers send `Origin` with every POST. A client without it is not a browser that another site
    could use; the token of the form still decides.
    """
    if hdrs.ORIGIN in headers:
        return headers[hdrs.ORIGIN] == origin
    return headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"
