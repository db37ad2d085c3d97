"""N6: what the journal gets of an attempt is encrypted, bounded, and only what the setting says."""

import json
import logging
from base64 import b64decode
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import to_json

from services.callback.handlers import Attempted, Delivered, Reporter
from services.callback.kept import EXCERPT_BYTES, MAX_EXCERPT, Bodies, Keeper, excerpt
from shared.amqp.codec import Properties
from shared.amqp.facts import fact_messages, owner_messages
from shared.amqp.message import Dead, DispatchFailed, Done, Message, Outcome, Retried
from shared.contracts.callback import SendCallback
from shared.contracts.kept_requests import MAX_REQUEST_BYTES, unpack
from shared.errors import PermanentError, TransientError
from shared.http.client import HttpResponse
from shared.security.encryption import SecretCipher
from shared.topology import TIERS

CANARY = "c4n4ry"
CIPHER = SecretCipher([bytes(range(32))])
NOW = 1_800_000_000.5
BODY = json.dumps(
    {
        "target_url": f"https://example.com/hooks/{CANARY}",
        "hmac_secret": CANARY,
        "payload": {"text": CANARY},
        "headers": {"Authorization": CANARY},
    }
).encode()
DELIVERED = Done(Delivered(204, 0.1))
RETRIED = Retried(TIERS[1], NOW + 5, TransientError("the receiver responded with 500"))
DEAD = Dead("the receiver responded with 410", PermanentError("410"))
DISPATCH_FAILED = DispatchFailed("gave up", TransientError("500"))


class StoppedClock:
    """A clock that always shows the same time."""

    def now(self) -> float:
        return NOW

    def monotonic(self) -> float:
        return NOW


def report(
    outcome: Outcome[Delivered],
    bodies: Bodies,
    *,
    body: bytes = BODY,
    response: bytes = CANARY.encode(),
    cipher: SecretCipher | None = CIPHER,
) -> Any:
    """Return the fact about a message with this body and response."""
    owner = "scheduler" if outcome is DISPATCH_FAILED else None
    message = Message("id-1", Properties(), body, owner=owner)
    message.record = Attempted(0.1, HttpResponse(500, None, response, "text/plain"))
    command = SendCallback.model_validate_json(body)
    return Reporter(StoppedClock(), Keeper(cipher, bodies)).report(message, command, outcome)


def opened(sealed: str | None) -> bytes | None:
    return None if sealed is None else CIPHER.decrypt(b64decode(sealed))


@pytest.mark.parametrize(
    ("bodies", "kept"),
    [
        ("none", [False, False, False, False]),
        ("failed", [False, True, True, True]),
        ("all", [True, True, True, True]),
    ],
)
def test_n6_the_setting_says_which_requests_are_kept(bodies: Bodies, kept: list[bool]) -> None:
    facts = [report(each, bodies) for each in (DELIVERED, RETRIED, DEAD, DISPATCH_FAILED)]
    assert [fact.request is not None for fact in facts] == kept
    for fact in facts:
        assert opened(fact.response) == CANARY.encode()
        if fact.request is not None:
            content = opened(fact.request)
            assert content is not None
            assert unpack(content) == ("id-1", BODY)


def test_n6_no_secret_no_body_and_no_response_is_in_a_fact_or_a_log_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG):
        facts: list[BaseModel] = [
            report(each, "all") for each in (DELIVERED, RETRIED, DEAD, DISPATCH_FAILED)
        ]
    texts = [to_json(facts), *(message.body for message in fact_messages(facts))]
    texts += [str(record.__dict__).encode() for record in caplog.records]
    assert len(caplog.records) == 4
    assert not [text for text in texts if CANARY.encode() in text]


def test_n6_owners_get_neither_the_request_nor_the_response() -> None:
    fact = report(DISPATCH_FAILED, "all")
    assert fact.request is not None
    [message] = owner_messages([fact])
    [owned] = json.loads(message.body)["facts"]
    assert (owned["reason"], owned.get("request"), owned.get("response")) == ("gave up", None, None)


def test_n6_without_a_key_nothing_is_kept() -> None:
    fact = report(RETRIED, "all", cipher=None)
    assert (fact.request, fact.response) == (None, None)


def test_n6_a_large_request_is_not_kept() -> None:
    padding = MAX_REQUEST_BYTES - len(BODY)
    assert report(RETRIED, "failed", body=BODY + b" " * padding).request is not None
    assert report(RETRIED, "failed", body=BODY + b" " * (padding + 1)).request is None


def test_n6_an_empty_response_is_not_kept() -> None:
    assert report(RETRIED, "failed", response=b"").response is None


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        (b"plain", None, "plain"),
        ("Grüße".encode(), "text/plain", "Grüße"),
        ("Grüße".encode("latin1"), "text/html; charset=ISO-8859-1", "Grüße"),
        ("Grüße".encode("cp1252"), 'text/html; charset="windows-1252"', "Grüße"),
        ("日本".encode("shift_jis"), "text/html;charset=Shift_JIS", "日本"),
        ("日本".encode("utf-16"), "text/html; charset=utf-16", "日本"),
        (b"\xff\xfe", "application/octet-stream", "\ufffd\ufffd"),
        (b"a\0b", "text/plain", "a\0b"),
        (b"text", "text/plain; charset=no-such-encoding", "text"),
        (b"text", "text/plain; charset=zip", "text"),
        (b"text", "text/plain; charset=unicode_escape", "text"),
    ],
)
def test_n6_an_excerpt_is_text_in_any_encoding(
    body: bytes, content_type: str | None, text: str
) -> None:
    assert excerpt(body, content_type) == text


@pytest.mark.parametrize("character", ["x", "ü", "日", "😀"])
def test_n6_an_excerpt_has_a_thousand_characters(character: str) -> None:
    body = (character * 5000).encode()[:EXCERPT_BYTES]
    assert excerpt(body, None) == character * MAX_EXCERPT


def test_n6_an_attempt_that_was_given_up_still_has_its_status_and_duration() -> None:
    fact = report(DEAD, "none")
    assert (fact.status, fact.duration) == (500, 0.1)
    assert fact.at == datetime.fromtimestamp(NOW, UTC)


def test_n7_a_fact_about_a_replay_names_it() -> None:
    message = Message("id-1", Properties(headers={"x-ringback-replay": "job-1"}), BODY)
    command = SendCallback.model_validate_json(BODY)
    reporter = Reporter(StoppedClock(), Keeper(None, "none"))
    fact: Any = reporter.report(message, command, DELIVERED)
    assert fact.replay == "job-1"
