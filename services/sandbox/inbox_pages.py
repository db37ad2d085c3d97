"""The pages of mails and of SMS."""

from html import escape
from itertools import islice
from typing import Any
from urllib.parse import quote

from aiohttp import web
from yarl import URL

from services.sandbox.behaviours import MailSettings, SmsSettings
from services.sandbox.inbox import MAX_SHOWN, Inbox, ReceivedMessage
from services.sandbox.layout import HEADERS, page_html, tag, time_of_day
from services.sandbox.mails import headers, parse_mail, part, subject
from services.sandbox.sms import BEHAVIOURS, text

_HTML_PART_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    # Allows the mail's own styles and inline images: no script, no other host, no navigation.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'self'; sandbox"
    ),
}


class InboxPages:
    """The pages of both inboxes."""

    def __init__(self, mails: Inbox[MailSettings], sms: Inbox[SmsSettings], smtp: URL) -> None:
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
            web.post(f"/sms/behaviour/{{name:{'|'.join(BEHAVIOURS)}}}", self.switch),
        ]

    async def mails(self, request: web.Request) -> web.Response:
        """Return the page of the last mails."""
        return _list_page(
            request,
            "/mails",
            self._mails,
            _mail_line,
            f"No mails yet. Send one to <code>{self._smtp}</code>: "
            "every sender and recipient is accepted.",
        )

    async def sms(self, request: web.Request) -> web.Response:
        """Return the page of the last SMS."""
        return _list_page(
            request,
            "/sms",
            self._sms,
            _sms,
            "No SMS yet. Send one with <code>POST /sms/v1/send/ID</code>.",
        )

    async def switch(self, request: web.Request) -> web.Response:
        """Give the SMS gateway this behaviour, and return to its page."""
        behaviour = BEHAVIOURS[request.match_info["name"]]
        self._sms.configure(SmsSettings(behaviour=behaviour))
        raise web.HTTPSeeOther("/sms")

    async def mail(self, request: web.Request) -> web.Response:
        """Return the page of one mail: headers, text, and the HTML in a sandboxed frame."""
        message = self._stored(request)
        mail = parse_mail(message)
        names = "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in headers(mail)
        )
        main = (
            f"<h2><a href='/mails'>Mails</a> · {escape(subject(mail)) or '(no subject)'}</h2>"
            f"<article class='card delivery'>{_line(message, '/mails', '')}{_fault(message)}"
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
                f"<iframe sandbox src='/mails/{message.number}/html' title='HTML part'></iframe>"
                "</details>"
            )
        body = page_html(main + "</article>", here="/mails", json=(f"/api/mails/{message.number}",))
        return web.Response(body=body, headers=HEADERS)

    async def html_part(self, request: web.Request) -> web.Response:
        """Return the HTML part, under a policy that allows a browser only to show it."""
        html = part(parse_mail(self._stored(request)), "html")
        if html is None:
            raise web.HTTPNotFound
        body = html.encode(errors="backslashreplace")
        return web.Response(body=body, headers=_HTML_PART_HEADERS)

    def _stored(self, request: web.Request) -> ReceivedMessage:
        message = self._mails.message(int(request.match_info["number"]))
        if message is None:
            raise web.HTTPNotFound(text="Mail not found: only the last ones are stored.")
        return message


def _list_page(
    request: web.Request, path: str, inbox: Inbox[Any], as_html: Any, when_empty: str
) -> web.Response:
    to = request.query.get("to") or None
    messages = "".join(map(as_html, islice(inbox.messages(to), MAX_SHOWN)))
    settings = inbox.settings
    behaviour = ""
    if settings.behaviour is not None:
        recipients = f" for {', '.join(settings.to)}" if settings.to else ""
        left = "" if inbox.times_left is None else f" · {inbox.times_left} of {settings.times} left"
        behaviour = f"<p>Behaviour: {escape(settings.behaviour.kind + recipients + left)}</p>"
    buttons = "".join(map(_button, BEHAVIOURS)) if path == "/sms" else ""
    kind = "mails" if path == "/mails" else "SMS"
    title = f" to {escape(to)} · <a href='{path}'>show all</a>" if to else ""
    main = (
        "<h2>Total</h2><div class='card mailbox'>"
        f"<p>{inbox.accepted:,} accepted, {inbox.refused:,} refused</p>{behaviour}{buttons}</div>"
        f"<h2>Last {kind}{title}</h2>"
        + (messages or f"<div class='card empty'><p>{when_empty}</p></div>")
    )
    body = page_html(main, here=path, json=(f"/api{path}", f"/api{path}/settings"))
    return web.Response(body=body, headers=HEADERS)


def _button(name: str) -> str:
    return f"<form method=post action='/sms/behaviour/{name}'><button>{name}</button></form>"


def _mail_line(message: ReceivedMessage) -> str:
    title = escape(subject(parse_mail(message))) or "(no subject)"
    link = f"<a class=name href='/mails/{message.number}'>{title}</a>"
    line = _line(message, "/mails", link)
    return f"<article class='card delivery'>{line}{_fault(message)}</article>"


def _sms(message: ReceivedMessage) -> str:
    return (
        f"<article class='card delivery'>{_line(message, '/sms', '')}{_fault(message)}"
        f"<pre>{escape(text(message))}</pre></article>"
    )


def _line(message: ReceivedMessage, path: str, title: str) -> str:
    recipients = " ".join(
        f"<a href='{path}?to={quote(address)}'>{escape(address)}</a>" for address in message.to
    )
    tags = [tag(f"attempt {message.attempt}", "")] if message.attempt else []
    if message.accepted:
        tags.append(tag("accepted", "good" if message.behaviour is None else "odd"))
    elif message.status is None:
        tags.append(tag("no complete response", "odd"))
    else:
        tags.append(tag(f"status {message.status}", "bad"))
    if message.behaviour:
        tags.append(tag(message.behaviour, "odd"))
    return (
        f"<div class=line>{time_of_day(message.received_at)}{title}<span>{recipients}</span>"
        f"<code class=id>{escape(message.id or '')}</code>"
        f"<span class=tags>{''.join(tags)}</span></div>"
    )


def _fault(message: ReceivedMessage) -> str:
    return f"<p class=fault>{escape(message.fault)}</p>" if message.fault else ""
