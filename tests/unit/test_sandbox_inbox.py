"""The sandbox's inboxes of mails and SMS, their settings, and their pages."""

import json
from email.message import EmailMessage
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from pydantic import ValidationError
from yarl import URL

from services.sandbox.behaviours import ApiSettings, MailSettings, SmsSettings
from services.sandbox.inbox import MAX_MESSAGES, MAX_STORED_BYTES, Inbox
from services.sandbox.inbox_pages import InboxPages
from services.sandbox.mails import mail_json

HOSTILE = "<script>'\"&"


def mail_settings(**fields: Any) -> MailSettings:
    return MailSettings.model_validate_json(json.dumps(fields))


def new_inbox(**fields: Any) -> Inbox[MailSettings]:
    inbox = Inbox(MailSettings())
    inbox.configure(mail_settings(**fields))
    return inbox


def kinds(inbox: Inbox[MailSettings], *addresses: str) -> list[str | None]:
    behaviours = [inbox.next_behaviour((address,)) for address in addresses]
    return [behaviour.kind if behaviour else None for behaviour in behaviours]


def test_a_behaviour_matches_its_recipients_in_any_case() -> None:
    inbox = new_inbox(behaviour={"kind": "fail"}, to=["bad@x.org", "*@Gone.org"])
    assert kinds(inbox, "a@x.org", "BAD@x.org", "any@gone.ORG") == [None, "fail", "fail"]


def test_times_can_count_all_messages_together() -> None:
    inbox = new_inbox(behaviour={"kind": "hang"}, times=2, to=["*@x.org"])
    assert kinds(inbox, "a@x.org", "a@y.org", "b@x.org", "c@x.org") == ["hang", None, "hang", None]
    assert inbox.times_left == 0


def test_times_can_count_the_messages_of_each_recipient() -> None:
    inbox = new_inbox(behaviour={"kind": "fail"}, times=1, per="to")
    assert kinds(inbox, "a@x.org", "b@x.org", "A@x.org", "b@x.org") == ["fail", "fail", None, None]
    assert inbox.times_left is None


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
def test_invalid_settings_are_rejected(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        mail_settings(**fields)


@pytest.mark.parametrize("model", [SmsSettings, ApiSettings])
def test_times_without_a_behaviour_are_rejected(model: type[SmsSettings | ApiSettings]) -> None:
    with pytest.raises(ValidationError, match="add a behaviour"):
        model.model_validate_json('{"times": 1}')


def test_the_number_of_stored_messages_is_bounded_and_counters_are_not() -> None:
    inbox = new_inbox()
    for number in range(MAX_MESSAGES + 5):
        inbox.record(0.0, to=("a@x.org",), status=250, accepted=True, id=f"<{number}@x>")
    assert len(list(inbox.messages())) == MAX_MESSAGES
    assert inbox.message(5) is None
    assert inbox.count("a@x.org") == inbox.count(None) == MAX_MESSAGES + 5


def test_the_bytes_of_stored_messages_are_bounded() -> None:
    inbox = new_inbox()
    for _ in range(5):
        inbox.record(0.0, status=250, accepted=True, content=bytes(MAX_STORED_BYTES // 4))
    assert [each.number for each in inbox.messages()] == [5, 4, 3, 2]


def test_a_refused_message_is_stored_and_counts_as_an_attempt_only() -> None:
    inbox = new_inbox()
    inbox.record(0.0, to=("a@x.org",), id="<1@x>", status=451)
    inbox.record(0.0, to=("a@x.org",), id="<1@x>", status=250, accepted=True)
    assert [(each.attempt, each.accepted) for each in inbox.messages()] == [(2, True), (1, False)]
    assert (inbox.accepted, inbox.refused, inbox.count("<1@x>"), inbox.count("a@x.org")) == (
        1,
        1,
        1,
        1,
    )


def test_clearing_messages_keeps_the_settings() -> None:
    inbox = new_inbox(behaviour={"kind": "hang"})
    inbox.record(0.0, to=("a@x.org",), status=250, accepted=True, content=b"x")
    inbox.clear()
    assert (list(inbox.messages()), inbox.count(None), inbox.count("a@x.org")) == ([], 0, 0)
    assert kinds(inbox, "a@x.org") == ["hang"]


def inbox_with(content: bytes) -> Inbox[MailSettings]:
    inbox = new_inbox()
    inbox.record(0.0, to=("b@x.org",), status=250, accepted=True, content=content)
    return inbox


def test_a_mail_is_parsed_into_its_parts() -> None:
    mail = EmailMessage()
    mail["Subject"] = "Новые фильмы"
    mail["From"] = "Кино <a@x.org>"
    mail.set_content("привет")
    mail.add_alternative("<p>привет</p>", subtype="html")
    [message] = inbox_with(mail.as_bytes()).messages()
    shown = mail_json(message)
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
    inbox = inbox_with(content)
    [message] = inbox.messages()
    json.dumps(mail_json(message))
    for path in ("/mails", "/mails/1"):
        assert "200" in str((await page(inbox, path)).status)


async def test_the_pages_escape_received_data() -> None:
    inbox = new_inbox(behaviour={"kind": "fail"}, to=[HOSTILE])
    content = f"Subject: {HOSTILE}\r\nX-Hostile: {HOSTILE}\r\n\r\n{HOSTILE}".encode()
    inbox.record(
        0.0, to=(HOSTILE,), id=HOSTILE, status=None, behaviour=HOSTILE, fault=HOSTILE,
        content=content,
    )  # fmt: skip
    for path, count in (("/mails", 6), ("/mails/1", 8)):
        html = (await page(inbox, path)).body.decode()
        main = html[html.index("<main>") : html.index("</main>")]
        assert "<script" not in main
        assert main.count("&lt;script&gt;&#x27;&quot;&amp;") == count


async def test_the_html_part_is_sandboxed() -> None:
    inbox = inbox_with(b"Content-Type: text/html\r\n\r\n<script>alert(1)</script>")
    shown = await page(inbox, "/mails/1")
    assert b"<iframe sandbox src='/mails/1/html'" in shown.body
    assert b"alert(1)" not in shown.body
    part = await page(inbox, "/mails/1/html")
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


async def page(inbox: Inbox[MailSettings], path: str) -> Page:
    pages = InboxPages(inbox, Inbox(SmsSettings()), URL("smtp://127.0.0.1:25"))
    handlers = {2: pages.mails, 3: pages.mail, 4: pages.html_part}
    parts = path.split("/")
    match = {"number": parts[2]} if len(parts) > 2 else {}
    request = make_mocked_request("GET", path, match_info=match)
    return Page(await handlers[len(parts)](request))
