"""What the sandbox keeps of mails and SMS, the orders for them, and the pages."""

import json
from email.message import EmailMessage
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from pydantic import ValidationError
from yarl import URL

from services.sandbox.inbox import KEPT_ARRIVALS, KEPT_BYTES, Inbox
from services.sandbox.inbox_pages import InboxPages
from services.sandbox.mails import mail_json
from services.sandbox.orders import ApiOrder, MailOrder, SmsOrder

HOSTILE = "<script>'\"&"


def mail_order(**fields: Any) -> MailOrder:
    return MailOrder.model_validate_json(json.dumps(fields))


def inbox(**order: Any) -> Inbox[MailOrder]:
    it = Inbox(MailOrder())
    it.obey(mail_order(**order))
    return it


def met(it: Inbox[MailOrder], *addresses: str) -> list[str | None]:
    behaviours = [it.meet((address,)) for address in addresses]
    return [behaviour.kind if behaviour else None for behaviour in behaviours]


def test_a_behaviour_is_for_the_recipients_named_whatever_their_case() -> None:
    it = inbox(behaviour={"kind": "fail"}, to=["bad@x.org", "*@Gone.org"])
    assert met(it, "a@x.org", "BAD@x.org", "any@gone.ORG") == [None, "fail", "fail"]


def test_a_behaviour_lasts_as_often_as_ordered_in_all() -> None:
    it = inbox(behaviour={"kind": "hang"}, times=2, to=["*@x.org"])
    assert met(it, "a@x.org", "a@y.org", "b@x.org", "c@x.org") == ["hang", None, "hang", None]
    assert it.times_left == 0


def test_a_behaviour_lasts_as_often_as_ordered_for_each_recipient() -> None:
    it = inbox(behaviour={"kind": "fail"}, times=1, per="to")
    assert met(it, "a@x.org", "b@x.org", "A@x.org", "b@x.org") == ["fail", "fail", None, None]
    assert it.times_left is None


@pytest.mark.parametrize(
    "fields",
    [
        {"times": 2},
        {"to": ["a@x.org"]},
        {"at": "data"},
        {"behaviour": {"kind": "fail", "status": 250}},
        {"behaviour": {"kind": "explode"}},
        {"behaviour": {"kind": "fail"}, "at": "noop"},
        {"behaviour": {"kind": "fail"}, "at": "hello", "to": ["a@x.org"]},
        {"behaviour": {"kind": "fail"}, "at": "hello", "times": 1, "per": "to"},
        {"behaviour": {"kind": "fail"}, "to": [""]},
    ],
)
def test_an_order_that_means_nothing_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        mail_order(**fields)


@pytest.mark.parametrize("model", [SmsOrder, ApiOrder])
def test_times_without_a_behaviour_are_refused(model: type[SmsOrder | ApiOrder]) -> None:
    with pytest.raises(ValidationError, match="give a behaviour"):
        model.model_validate_json('{"times": 1}')


def test_memory_is_bounded_by_number_while_counters_go_on() -> None:
    it = inbox()
    for number in range(KEPT_ARRIVALS + 5):
        it.keep(0.0, to=("a@x.org",), status=250, accepted=True, id=f"<{number}@x>")
    assert len(list(it.arrivals())) == KEPT_ARRIVALS
    assert it.arrival(5) is None
    assert it.count("a@x.org") == it.count(None) == KEPT_ARRIVALS + 5


def test_memory_is_bounded_by_bytes() -> None:
    it = inbox()
    for _ in range(5):
        it.keep(0.0, status=250, accepted=True, content=bytes(KEPT_BYTES // 4))
    assert [each.number for each in it.arrivals()] == [5, 4, 3, 2]


def test_what_was_refused_is_kept_and_counts_as_a_try_only() -> None:
    it = inbox()
    it.keep(0.0, to=("a@x.org",), id="<1@x>", status=451)
    it.keep(0.0, to=("a@x.org",), id="<1@x>", status=250, accepted=True)
    assert [(each.try_number, each.accepted) for each in it.arrivals()] == [(2, True), (1, False)]
    assert (it.accepted, it.refused, it.count("<1@x>"), it.count("a@x.org")) == (1, 1, 1, 1)


def test_forgetting_keeps_the_order() -> None:
    it = inbox(behaviour={"kind": "hang"})
    it.keep(0.0, to=("a@x.org",), status=250, accepted=True, content=b"x")
    it.forget()
    assert (list(it.arrivals()), it.count(None), it.count("a@x.org")) == ([], 0, 0)
    assert met(it, "a@x.org") == ["hang"]


def taken(content: bytes) -> Inbox[MailOrder]:
    it = inbox()
    it.keep(0.0, to=("b@x.org",), status=250, accepted=True, content=content)
    return it


def test_a_mail_is_taken_apart() -> None:
    mail = EmailMessage()
    mail["Subject"] = "Новые фильмы"
    mail["From"] = "Кино <a@x.org>"
    mail.set_content("привет")
    mail.add_alternative("<p>привет</p>", subtype="html")
    [arrival] = taken(mail.as_bytes()).arrivals()
    shown = mail_json(arrival)
    assert (shown["subject"], shown["text"], shown["html"]) == (
        "Новые фильмы",
        "привет\n",
        "<p>привет</p>\n",
    )
    assert ["From", "Кино <a@x.org>"] in [list(pair) for pair in shown["headers"]]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no header at all",
        b"Subject: \xff\xfe\r\n\r\n\xff",
        b"Content-Type: text/plain; charset=klingon\r\n\r\nhello",
        b"Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!",
        b"Content-Type: multipart/alternative; boundary=x\r\n\r\n--y\r\n",
        b"Content-Type: multipart/mixed\r\n\r\n",
        b"From: =?utf-8?b?////?= <<>>,,;:\r\nDate: never\r\nContent-Type: ;;\r\n\r\nx",
        b"Subject: =?klingon?q?x?=\r\nMessage-ID: <<\r\n\r\n\r\n.\r\n",
    ],
    ids=range(9),
)
async def test_any_mail_can_be_shown(content: bytes) -> None:
    it = taken(content)
    [arrival] = it.arrivals()
    json.dumps(mail_json(arrival))
    for path in ("/mails", "/mails/1"):
        assert "200" in str((await page(it, path)).status)


async def test_the_pages_escape_all_that_came() -> None:
    it = inbox(behaviour={"kind": "fail"}, to=[HOSTILE])
    content = f"Subject: {HOSTILE}\r\nX-Hostile: {HOSTILE}\r\n\r\n{HOSTILE}".encode()
    it.keep(
        0.0, to=(HOSTILE,), id=HOSTILE, status=None, behaviour=HOSTILE, fault=HOSTILE,
        content=content,
    )  # fmt: skip
    for path, count in (("/mails", 6), ("/mails/1", 8)):
        html = (await page(it, path)).body.decode()
        main = html[html.index("<main>") : html.index("</main>")]
        assert "<script" not in main
        assert main.count("&lt;script&gt;&#x27;&quot;&amp;") == count


async def test_the_html_part_may_do_nothing() -> None:
    it = taken(b"Content-Type: text/html\r\n\r\n<script>alert(1)</script>")
    shown = await page(it, "/mails/1")
    assert b"<iframe sandbox src='/mails/1/html'" in shown.body
    assert b"alert(1)" not in shown.body
    part = await page(it, "/mails/1/html")
    assert b"alert(1)" in part.body
    policy = part.headers["Content-Security-Policy"].split("; ")
    assert "default-src 'none'" in policy
    assert "sandbox" in policy


class Page:
    def __init__(self, response: web.Response) -> None:
        self.status = response.status
        self.headers = response.headers
        assert isinstance(response.body, bytes)
        self.body = response.body


async def page(it: Inbox[MailOrder], path: str) -> Page:
    pages = InboxPages(it, Inbox(SmsOrder()), URL("smtp://127.0.0.1:25"))
    handlers = {2: pages.mails, 3: pages.mail, 4: pages.html_part}
    parts = path.split("/")
    match = {"number": parts[2]} if len(parts) > 2 else {}
    request = make_mocked_request("GET", path, match_info=match)
    return Page(await handlers[len(parts)](request))
