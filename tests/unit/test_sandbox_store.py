"""Settings, counters and bounds of the sandbox's mailboxes, and their page."""

import dataclasses
import json
from typing import Any

import pytest
from pydantic import ValidationError
from yarl import URL

from services.sandbox.behaviours import MailboxSettings
from services.sandbox.domain import SignatureCheck
from services.sandbox.memory import MAX_KEYS, BoundedCounter
from services.sandbox.page import render
from services.sandbox.store import (
    MAX_DELIVERIES,
    MAX_MAILBOXES,
    Delivery,
    Mailbox,
    Store,
)

DELIVERY = Delivery(
    number=1,
    received_at=1_800_000_000.123,
    mailbox="demo",
    method="POST",
    path="/hooks/demo",
    headers={"user-agent": "test"},
    body=b"{}",
    body_size=2,
    webhook_id="msg_1",
    attempt=1,
    signatures=SignatureCheck(("x-signature",), ()),
    status=200,
    behaviour=None,
)


def settings(**fields: Any) -> MailboxSettings:
    return MailboxSettings.model_validate_json(json.dumps(fields))


def page(*deliveries: Delivery, mailbox: Mailbox | None = None, chosen: str | None = None) -> str:
    mailboxes = [mailbox] if mailbox else []
    return render(mailboxes, list(deliveries), chosen, URL("http://127.0.0.1:8090/")).decode()


def kinds(mailbox: Mailbox, ids: list[str | None]) -> list[str | None]:
    behaviours = [mailbox.next_behaviour(each) for each in ids]
    return [behaviour.kind if behaviour else None for behaviour in behaviours]


def test_a_behaviour_lasts_for_its_number_of_requests_and_restarts_with_new_settings() -> None:
    mailbox = Mailbox("demo", settings(behaviour={"kind": "hang"}, times=2))
    assert kinds(mailbox, ["a", "b", "a", None]) == ["hang", "hang", None, None]
    mailbox.configure(settings(behaviour={"kind": "reset"}, times=1))
    assert kinds(mailbox, ["a", "a"]) == ["reset", None]


def test_times_can_count_the_requests_of_each_id() -> None:
    mailbox = Mailbox("demo", settings(behaviour={"kind": "hang"}, times=1, per="id"))
    assert kinds(mailbox, ["a", "b", "a", "b"]) == ["hang", "hang", None, None]


def test_a_behaviour_without_times_has_no_limit() -> None:
    mailbox = Mailbox("demo", settings(behaviour={"kind": "hang"}))
    assert kinds(mailbox, ["a"] * 5) == ["hang"] * 5


@pytest.mark.parametrize(
    "fields",
    [
        {"times": 2},
        {"per": "id"},
        {"behaviour": {"kind": "hang"}, "times": 0},
        {"behaviour": {"kind": "fail", "status": 199}},
        {"behaviour": {"kind": "fail", "retry_after": "5\r\nX-Injected: 1"}},
        {"behaviour": {"kind": "redirect"}},
        {"behaviour": {"kind": "redirect", "location": "/", "status": 304}},
        {"behaviour": {"kind": "explode"}},
        {"behaviour": {"kind": "hang", "seconds": 3}},
        {"secrets": []},
        {"secrets": [""]},
        {"secrets": ["whsec_!!"]},
        {"secret": "singular"},
    ],
)
def test_invalid_settings_are_rejected(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**fields)


def test_the_number_of_stored_deliveries_is_bounded_and_counters_are_not() -> None:
    store = Store()
    for number in range(MAX_DELIVERIES + 5):
        store.mailbox("demo").received += 1
        store.record(dataclasses.replace(DELIVERY, number=number))
    kept = [delivery.number for delivery in store.deliveries()]
    assert kept == list(range(MAX_DELIVERIES + 4, 4, -1))
    assert store.count("demo", None) == MAX_DELIVERIES + 5


def test_the_least_recently_used_mailbox_is_dropped_first() -> None:
    store = Store()
    for number in range(MAX_MAILBOXES):
        store.mailbox(f"box-{number}")
    store.mailbox("box-0")
    store.mailbox("one-more")
    assert len(store.mailboxes) == MAX_MAILBOXES
    assert "box-0" in store.mailboxes
    assert "box-1" not in store.mailboxes


def test_a_counter_drops_the_least_recently_counted_key() -> None:
    counter = BoundedCounter()
    for number in range(MAX_KEYS):
        counter.add(str(number))
    assert counter.add("0") == 2
    counter.add("one more")
    assert (counter["0"], counter["1"], counter["2"]) == (2, 0, 1)


def test_the_page_escapes_received_data() -> None:
    hostile = "<script>'\"&"
    delivery = dataclasses.replace(
        DELIVERY,
        mailbox=hostile,
        method=hostile,
        path=hostile,
        headers={hostile: hostile},
        body=hostile.encode(),
        webhook_id=hostile,
        signatures=SignatureCheck((), (hostile,)),
    )
    html = page(delivery, mailbox=Mailbox(hostile), chosen=hostile)
    main = html[html.index("<main>") : html.index("</main>")]
    assert "<script" not in main
    assert main.count("&lt;script&gt;&#x27;&quot;&amp;") == 10


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"b": {"a": 1}}', "{\n  &quot;b&quot;: {\n    &quot;a&quot;: 1\n  }\n}"),
        ('{"a": "привет"}'.encode(), "привет"),
        (b'{"a": "\\ud800"}', "\\ud800"),
        (b"[" * 10_000, "[[[["),
        (b"\xff not JSON", "\ufffd not JSON"),
        (b"9" * 5000, "9999"),
        (b"", "(empty)"),
    ],
    ids=["json", "not ascii", "lone surrogate", "nested", "not utf-8", "long number", "empty"],
)
def test_the_page_shows_any_body(body: bytes, shown: str) -> None:
    assert shown in page(dataclasses.replace(DELIVERY, body=body, body_size=len(body)))


def test_the_page_says_when_a_body_is_truncated() -> None:
    assert "20,000 bytes" in page(dataclasses.replace(DELIVERY, body=b'{"a', body_size=20_000))


def test_secrets_are_not_shown() -> None:
    configured = settings(
        secrets=["canary-secret"], behaviour={"kind": "fail", "status": 410}, times=3
    )
    html = page(mailbox=Mailbox("demo", configured))
    assert "behaviour: fail, status 410 · 3 of 3 left" in html
    assert "canary" not in html + repr(configured) + configured.model_dump_json()
