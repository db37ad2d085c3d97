"""One request of a browser: who sends it, what it selects, and the means to respond."""

import base64
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final
from zoneinfo import ZoneInfo

from aiohttp import web
from jinja2 import Environment
from multidict import MultiDict, MultiMapping
from pydantic_core import to_json
from yarl import URL

from services.console.feeds import Feeds
from services.console.formatting import UTC_ZONE, Moment, moment, zone_of
from services.console.security import (
    CONTENT_SECURITY_POLICY,
    NOTICE_COOKIE,
    POLICY,
    ZONE_COOKIE,
    delete_cookie,
    set_cookie,
)
from services.console.sign_in.roles import Role
from services.console.sign_in.sessions import Session
from shared.amqp.publisher import Publisher
from shared.amqp.rpc import RequestContext
from shared.contracts.journal_reads import RECORD_AUDIT
from shared.contracts.requests import FieldError, RpcOperation
from shared.http.problem import ProblemError
from shared.http.service_client import ServiceClient
from shared.http.tracing import traceparent_of

logger = logging.getLogger(__name__)

# The parameter with the client for which a page acts. Links keep it.
CLIENT: Final = "client"
MAX_CLIENT_LENGTH: Final = 255
# Client ids of Ringback's own services.
RESERVED_CLIENTS: Final = "ringback."
# Characters of a notice, which travels in a cookie.
MAX_NOTICE: Final = 500
# Seconds until a notice that no page has shown is forgotten.
_NOTICE_LIFETIME: Final = 60


@dataclass(frozen=True, slots=True)
class Link:
    """A link in the navigation."""

    path: str
    title: str
    role: Role


@dataclass(frozen=True, slots=True)
class Site:
    """What all requests share.

    origin: scheme, host and port at which browsers reach the console.
    navigation: the links of each section.
    assets: the URL of each static file.
    feeds: the live parts of pages, which this process reads once for all browsers.
    publisher: of events.
    """

    origin: str
    services: ServiceClient
    environment: Environment
    navigation: Mapping[str, Sequence[Link]]
    assets: Mapping[str, str]
    feeds: Feeds
    publisher: Publisher


@dataclass(frozen=True, slots=True)
class Notice:
    """The result of an action, shown once on the next page. kind: `good` or `bad`."""

    text: str
    kind: str = "good"


@dataclass(frozen=True, slots=True)
class Visit:
    """One request.

    session: None only on pages that need no sign-in.
    title: the heading of the page.
    client_id: the selected client; None is the anonymous one, or all, as the page says.
    form: the fields of an action, after the check of its token.
    """

    request: web.Request
    site: Site
    session: Session | None
    title: str
    client_id: str | None = None
    form: MultiMapping[Any] = field(default_factory=MultiDict)

    @property
    def parameters(self) -> Mapping[str, str]:
        """Return the parameters in the path."""
        return self.request.match_info

    @property
    def query(self) -> MultiMapping[str]:
        """Return the query of the URL."""
        return self.request.query

    @property
    def zone(self) -> ZoneInfo:
        """Return the time zone of the viewer, or UTC before the browser has sent it."""
        return zone_of(self.request.cookies.get(ZONE_COOKIE)) or UTC_ZONE

    @property
    def csrf(self) -> str:
        """Return the token for the forms of this page."""
        return "" if self.session is None else self.session.csrf

    def allows(self, role: str) -> bool:
        """Return whether the user has this role: `viewer`, `operator` or `admin`."""
        return self.session is not None and self.session.role >= Role[role.upper()]

    def other_url(self) -> dict[str, str]:
        """Return the field `url` of a replay, if the form has one.

        Raises:
            ProblemError: 403, the user is no admin. The kept request is sent to that URL with all
                of its headers and its body, which only an admin may read.
        """
        url = self.text("url")
        if url and not self.allows("admin"):
            raise ProblemError(
                HTTPStatus.FORBIDDEN,
                "forbidden",
                "A replay to another URL requires the role admin.",
            )
        return {"url": url} if url else {}

    def is_at(self, path: str) -> bool:
        """Return whether this is the page at `path`, or one below it."""
        here = self.request.path
        return here == path or (path != "/" and here.startswith(f"{path}/"))

    def text(self, name: str) -> str:
        """Return a field of the form without surrounding spaces; empty if it is missing."""
        value = self.form.get(name, "")
        return value.strip() if isinstance(value, str) else ""

    def texts(self, name: str) -> list[str]:
        """Return all values of a field of the form, such as checked boxes."""
        return [each for each in self.form.getall(name, []) if isinstance(each, str)]

    def moment(self, at: datetime | str | float) -> Moment:
        """Return a time for display in the viewer's zone and in UTC."""
        return moment(at, self.zone)

    async def call(self, operation: RpcOperation[Any], body: Any = None) -> Any:
        """Return the response of a service to a request of the selected client.

        Raises:
            ProblemError: the failure of the service; it becomes an error page.
        """
        body = to_json({} if body is None else body)
        return await self.site.services.request(operation, body, self.context())

    async def record(self, action: str, object_: str, **detail: Any) -> None:
        """Record an action in the audit log of the journal, for services that do not do so.

        An action that is done stays done: if the journal is unavailable, the log has the record.
        """
        body = {
            "action": action,
            "object": object_,
            "client_id": self.client_id,
            "detail": detail,
        }
        try:
            await self.call(RECORD_AUDIT, body)
        except ProblemError as problem:
            context = {"action": action, "subject": self.session and self.session.subject}
            logger.warning("action not recorded: %s", problem, extra=context)

    def context(self) -> RequestContext:
        """Return the context of requests to services: on behalf of the client, by this user."""
        return RequestContext(
            self.client_id,
            traceparent_of(self.request),
            operator=self.session is not None,
            actor=None if self.session is None else self.session.actor,
        )

    def url(self, path: str, **query: Any) -> str:
        """Return the URL of a page of the console. It keeps the selected client."""
        given = {CLIENT: self.client_id, **query}
        return _local(path, {name: value for name, value in given.items() if value is not None})

    def here(self, **changes: Any) -> str:
        """Return the URL of this page with changed parameters; None removes one."""
        given = {**self.request.query, **changes}
        kept = {name: value for name, value in given.items() if value not in (None, "")}
        return _local(self.request.path, kept)

    def render(
        self,
        template: str,
        *,
        status: int = HTTPStatus.OK,
        headers: Mapping[str, str] | None = None,
        policy: str = POLICY,
        **values: Any,
    ) -> web.Response:
        """Return a page. The template gets `values` and `visit`."""
        notice = _notice(self.request.cookies.get(NOTICE_COOKIE))
        html = self.site.environment.get_template(template).render(
            values, visit=self, notice=notice
        )
        response = web.Response(
            status=status,
            # UTF-8 cannot encode a lone surrogate, such as "\ud800" in a JSON body.
            body=html.encode(errors="backslashreplace"),
            content_type="text/html",
            charset="utf-8",
            headers={**(headers or {}), CONTENT_SECURITY_POLICY: policy},
        )
        if NOTICE_COOKIE in self.request.cookies:
            delete_cookie(response, NOTICE_COOKIE)
        return response

    def redirect(self, url: str, notice: Notice | None = None) -> web.Response:
        """Return the redirect after an action, and show a notice on the next page.

        `url` comes from `url` or `here`.
        """
        response = web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": url})
        if notice is not None:
            set_cookie(response, NOTICE_COOKIE, _encoded(notice), max_age=_NOTICE_LIFETIME)
        return response


def selected_client(query: MultiMapping[str]) -> str | None:
    """Return the client that a URL selects, or None.

    Raises:
        ProblemError: 422, it is not a valid client id.
    """
    client = query.get(CLIENT, "").strip()
    if len(client) <= MAX_CLIENT_LENGTH and client.isprintable():
        if not client.startswith(RESERVED_CLIENTS):
            return client or None
        fault = f"Must not begin with {RESERVED_CLIENTS}: it names a service of Ringback"
    else:
        fault = f"Must have at most {MAX_CLIENT_LENGTH} visible characters"
    raise ProblemError(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "invalid",
        "The client is not valid.",
        errors=[FieldError(field=CLIENT, message=fault)],
    )


def _local(path: str, query: Mapping[str, Any]) -> str:
    return str(URL.build(path=path, query={name: str(value) for name, value in query.items()}))


def _encoded(notice: Notice) -> str:
    text = json.dumps([notice.text[:MAX_NOTICE], notice.kind])
    return base64.urlsafe_b64encode(text.encode()).decode()


def _notice(cookie: str | None) -> Notice | None:
    """Return the notice in a cookie, or None."""
    try:
        text, kind = json.loads(base64.urlsafe_b64decode((cookie or "").encode()))
    except (ValueError, TypeError, RecursionError):
        return None
    return Notice(str(text), "bad" if kind == "bad" else "good")
