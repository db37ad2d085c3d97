"""E6: messages become mails and SMS, once, not too late, and facts tell what became of them."""

import logging

import pytest
from prometheus_client import REGISTRY

from tests.fakes.delivering import (
    CANARY,
    around,
    at_work,
    email,
    settings,
)
from tests.fakes.sandbox import sandbox


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_e6_an_email_arrives_with_all_that_a_mail_program_needs(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    order = email(
        subject=f"Новые фильмы {CANARY}",
        html=f"<p>Hello {CANARY}</p>",
        unsubscribe_url=f"https://shop.example.com/u?t={CANARY}",
    )
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with sandbox() as box, around(amqp_url) as it:
        with caplog.at_level(logging.INFO):
            async with at_work(monkeypatch, amqp_url, settings(box)):
                await it.send(order, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
                fact = await it.fact(order, "sent")
        [mail] = await box.came("/api/mails", to=order["to"])
    headers = dict(mail["headers"])
    assert (mail["from"], mail["to"]) == ("news@shop.example.com", [order["to"]])
    assert mail["id"] == headers["Message-ID"] == f"<{order['id']}@shop.example.com>"
    assert (mail["subject"], mail["text"].strip(), mail["html"].strip()) == (
        order["subject"],
        order["text"],
        order["html"],
    )
    assert headers["List-Unsubscribe"] == f"<{order['unsubscribe_url']}>"
    assert headers["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert (fact["posting_id"], fact["way"], fact["attempt"]) == ("posting-1", "email", 1)
    [line] = [record for record in caplog.records if record.getMessage() == "message sent"]
    told = (line.message_id, line.posting_id, line.user_id, line.way, line.attempt, line.trace_id)  # type: ignore[attr-defined]
    assert told == (order["id"], "posting-1", "user-1", "email", 1, trace)
    everything = [repr(vars(record)) for record in caplog.records]
    assert not [each for each in everything if CANARY in each]
