"""E6: the built mail is parsed back by the standard library, and nothing can be injected."""

from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.delivery.mime import MimeBuilder
from shared.contracts.messages import SendEmail

NOW = 1_800_000_000.0
SHOP = MimeBuilder("Кино и сериалы <news@shop.example.com>")
NAMES = {"From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Auto-Submitted"}
# Texts that JSON can contain: no NUL, no surrogates.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=300)
subjects = texts.map(lambda text: "".join(c for c in text if c >= " " and c != "\x7f")).filter(len)


def command(**fields: Any) -> SendEmail:
    return SendEmail.model_validate(
        {"to": "user@example.org", "subject": "New movies", "text": "Hello"} | fields
    )


def built(message_id: str = "id-1", **fields: Any) -> bytes:
    return SHOP.build(command(**fields), message_id, now=NOW)


def parsed(raw: bytes) -> EmailMessage:
    return message_from_bytes(raw, policy=policy.default)


def lines(text: str) -> str:
    """Return the text with equal line ends."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def content(mail: EmailMessage, kind: str) -> str:
    body = mail.get_body((kind,))
    assert body is not None
    raw = body.get_payload(decode=True)
    assert isinstance(raw, bytes)
    return lines(raw.decode())


@settings(max_examples=150)
@given(subject=subjects, text=texts, html=st.none() | texts)
@example(subject="=?utf-8?q?x?=", text="a\rb", html="\x85")
@example(subject="a\x85Bcc: evil@example.org", text=".\r\n..\n", html="x" * 3000)
@example(subject="слово " * 150, text="слово " * 400, html="trailing \t\n\n")
@example(subject="a" * 998, text="é" + "x" * 1200, html=None)
def test_e6_any_mail_is_parsed_back_unchanged(subject: str, text: str, html: str | None) -> None:
    raw = built(subject=subject, text=text, html=html)
    assert raw.isascii()
    assert b"\0" not in raw
    assert raw.count(b"\n") == raw.count(b"\r") == raw.count(b"\r\n")
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    mail = parsed(raw)
    assert not mail.defects
    assert {*mail} == NAMES | (
        {"Content-Type"} if html is not None else {"Content-Type", "Content-Transfer-Encoding"}
    )
    assert str(mail["Subject"]).split() == subject.split()
    assert content(mail, "plain") == lines(text)
    if html is not None:
        assert mail.get_content_type() == "multipart/alternative"
        assert content(mail, "html") == lines(html)


def test_e6_a_mail_has_sender_recipient_and_date() -> None:
    mail = parsed(built())
    assert str(mail["From"]) == "Кино и сериалы <news@shop.example.com>"
    assert str(mail["To"]) == "user@example.org"
    assert mail["Date"].datetime.timestamp() == NOW
    assert mail["Auto-Submitted"] == "auto-generated"
    assert "List-Unsubscribe" not in mail


@pytest.mark.parametrize("given_id", ["id-1", "a.b-7", "5f0c1f6e-8d0e-4b57-9a3d-0a8b5d5b7a11"])
def test_e6_the_message_id_is_the_same_on_every_attempt(given_id: str) -> None:
    first, second = (
        SHOP.build(command(html="<p>x</p>"), given_id, now=now) for now in (NOW, NOW + 60)
    )
    assert (
        parsed(first)["Message-ID"]
        == parsed(second)["Message-ID"]
        == (f"<{given_id}@shop.example.com>")
    )


@pytest.mark.parametrize("given_id", ["a b", "a>b", "a@b", ".a", "<x>", 'a"b', "a..b"])
def test_e6_an_id_with_other_characters_is_replaced_by_its_hash(given_id: str) -> None:
    one, repeated, other = (
        str(parsed(built(each))["Message-ID"]) for each in (given_id, given_id, "?")
    )
    assert one == repeated != other
    assert one.removeprefix("<").partition("@")[0].isalnum()


@pytest.mark.parametrize("length", [0, 900, 1950])
def test_e6_a_mail_has_the_headers_for_one_click_unsubscribe(length: int) -> None:
    url = "https://shop.example.com/u?t=" + "a" * length
    mail = parsed(built(unsubscribe_url=url))
    # RFC 2369, 2: white space within the brackets is ignored.
    assert str(mail["List-Unsubscribe"]).replace(" ", "") == f"<{url}>"
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"


def test_finding_c14_there_is_no_one_click_unsubscribe_over_http() -> None:
    mail = parsed(built(unsubscribe_url="http://shop.example.com/u?t=a"))
    assert "List-Unsubscribe" not in mail
    assert "List-Unsubscribe-Post" not in mail


def test_an_unsubscribe_url_cannot_end_its_angle_brackets() -> None:
    mail = parsed(built(unsubscribe_url="https://x.org/>,<mailto:evil@example.org"))
    assert mail["List-Unsubscribe"] == "<https://x.org/%3E,%3Cmailto:evil@example.org>"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Hello\n" * 100, "7bit"),
        ("x" * 999, "quoted-printable"),
        ("Le film de la semaine est arrivé.\n", "quoted-printable"),
        ("Привет, мир!\n" * 9, "base64"),
    ],
)
def test_the_encoding_is_7bit_if_possible_or_else_the_shortest(text: str, encoding: str) -> None:
    assert parsed(built(text=text))["Content-Transfer-Encoding"] == encoding
