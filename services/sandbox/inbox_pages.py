"""The pages of mails and of SMS."""

from html import escape
from itertools import islice
from typing import Any
from urllib.parse import quote

from aiohttp import web
from yarl import URL

from services.sandbox.inbox import SHOWN, Arrival, Inbox
from services.sandbox.layout import HEADERS, framed, moment, tag
from services.sandbox.mails import headers, part, read, subject
from services.sandbox.orders import MailOrder, SmsOrder
from services.sandbox.sms import text

_HTML_PART_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    # The mail's own styles and inline images; no script, nothing from elsewhere, no way out.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'self'; sandbox"
    ),
}


class InboxPages:
    """The pages, around both inboxes."""

    def __init__(self, mails: Inbox[MailOrder], sms: Inbox[SmsOrder], smtp: URL) -> None:
        self._mails = mails
        self._sms = sms
        self._smtp = smtp

    def routes(self) -> list[web.RouteDef]:
        """Return every route."""
        return [
            web.get("/mails", self.mails),
            web.get("/mails/{number:[0-9]{1,18}}", self.mail),
            web.get("/mails/{number:[0-9]{1,18}}/html", self.html_part),
            web.get("/sms", self.sms),
        ]

    async def mails(self, request: web.Request) -> web.Response:
        """Show the last mails."""
        return _listed(
            request,
            "/mails",
            self._mails,
            _mail_line,
            f"Nothing came yet. Mail is taken at <code>{self._smtp}</code>, "
            "from everybody, for everybody.",
        )

    async def sms(self, request: web.Request) -> web.Response:
        """Show the last SMS."""
        return _listed(
            request,
            "/sms",
            self._sms,
            _sms,
            "Nothing came yet. Messages are taken at <code>POST /sms/v1/send/ID</code>.",
        )

    async def mail(self, request: web.Request) -> web.Response:
        """Show one mail: its headers, its text, and its HTML in a frame that can do nothing."""
        arrival = self._kept(request)
        mail = read(arrival)
        names = "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in headers(mail)
        )
        main = (
            f"<h2><a href='/mails'>Mails</a> · {escape(subject(mail)) or '(no subject)'}</h2>"
            f"<article class='card delivery'>{_line(arrival, '/mails', '')}{_fault(arrival)}"
            f"<details open id=headers><summary>Headers</summary><dl>{names}</dl></details>"
        )
        plain, html = part(mail, "plain"), part(mail, "html")
        if plain is not None:
            main += (
                f"<details open id=text><summary>Text</summary><pre>{escape(plain)}</pre></details>"
            )
        if html is not None:
            main += (
                "<details open id=html><summary>HTML</summary>"
                f"<iframe sandbox src='/mails/{arrival.number}/html' title='HTML part'></iframe>"
                "</details>"
            )
        body = framed(main + "</article>", here="/mails", json=(f"/api/mails/{arrival.number}",))
        return web.Response(body=body, headers=HEADERS)

    async def html_part(self, request: web.Request) -> web.Response:
        """Answer with the HTML part, with which a browser may do nothing but show it."""
        html = part(read(self._kept(request)), "html")
        if html is None:
            raise web.HTTPNotFound
        body = html.encode(errors="backslashreplace")
        return web.Response(body=body, headers=_HTML_PART_HEADERS)

    def _kept(self, request: web.Request) -> Arrival:
        arrival = self._mails.arrival(int(request.match_info["number"]))
        if arrival is None:
            raise web.HTTPNotFound(text="there is no such mail any more")
        return arrival


def _listed(
    request: web.Request, path: str, inbox: Inbox[Any], shown: Any, nothing: str
) -> web.Response:
    to = request.query.get("to") or None
    arrivals = "".join(map(shown, islice(inbox.arrivals(to), SHOWN)))
    order = inbox.order
    told = ""
    if order.behaviour is not None:
        whom = f" for {', '.join(order.to)}" if order.to else ""
        left = "" if inbox.times_left is None else f" · {inbox.times_left} of {order.times} left"
        told = f"<p>Told to {escape(order.behaviour.kind + whom + left)}</p>"
    kind = "mails" if path == "/mails" else "SMS"
    title = f" to {escape(to)} · <a href='{path}'>show all</a>" if to else ""
    main = (
        "<h2>So far</h2><div class='card mailbox'>"
        f"<p>{inbox.accepted:,} accepted, {inbox.refused:,} not</p>{told}</div>"
        f"<h2>Last {kind}{title}</h2>"
        + (arrivals or f"<div class='card empty'><p>{nothing}</p></div>")
    )
    body = framed(main, here=path, json=(f"/api{path}", f"/api{path}/order"))
    return web.Response(body=body, headers=HEADERS)


def _mail_line(arrival: Arrival) -> str:
    title = escape(subject(read(arrival))) or "(no subject)"
    link = f"<a class=name href='/mails/{arrival.number}'>{title}</a>"
    line = _line(arrival, "/mails", link)
    return f"<article class='card delivery'>{line}{_fault(arrival)}</article>"


def _sms(arrival: Arrival) -> str:
    return (
        f"<article class='card delivery'>{_line(arrival, '/sms', '')}{_fault(arrival)}"
        f"<pre>{escape(text(arrival))}</pre></article>"
    )


def _line(arrival: Arrival, path: str, title: str) -> str:
    recipients = " ".join(
        f"<a href='{path}?to={quote(each)}'>{escape(each)}</a>" for each in arrival.to
    )
    tags = [tag(f"try {arrival.try_number}", "")] if arrival.try_number else []
    if arrival.accepted:
        tags.append(tag("accepted", "good" if arrival.behaviour is None else "odd"))
    elif arrival.status is None:
        tags.append(tag("no whole answer", "odd"))
    else:
        tags.append(tag(f"answered {arrival.status}", "bad"))
    if arrival.behaviour:
        tags.append(tag(arrival.behaviour, "odd"))
    return (
        f"<div class=line>{moment(arrival.received_at)}{title}<span>{recipients}</span>"
        f"<code class=id>{escape(arrival.id or '')}</code>"
        f"<span class=tags>{''.join(tags)}</span></div>"
    )


def _fault(arrival: Arrival) -> str:
    return f"<p class=fault>{escape(arrival.fault)}</p>" if arrival.fault else ""
