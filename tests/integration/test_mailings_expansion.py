"""Postings become messages: on a real database, with lists of users over HTTP."""

from collections.abc import AsyncIterator, Iterator

import pytest

from shared.contracts.messages import SendEmail, SendSms
from tests.fakes.mailing import Lists, Mailings, lists, mailings, posting, user
from tests.fakes.system import fresh_database


@pytest.fixture
def url(database_url: str) -> Iterator[str]:
    with fresh_database(database_url) as it:
        yield it


@pytest.fixture
async def around(url: str) -> AsyncIterator[tuple[Mailings, Lists]]:
    async with lists() as users, mailings(url, {"auth": users.url}) as it:
        yield it, users


async def test_e5_a_posting_becomes_a_message_for_each_receiver_and_way(
    around: tuple[Mailings, Lists],
) -> None:
    it, users = around
    users.people["all"] = [user(1), user(2, phone="+7 (900) 000-00-02"), user(3, email=None)]
    body = posting(delivery_type=["email", "sms"], expires_in="1 hour")

    id_ = await it.post(body, headers={"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"})
    status = await it.expand(id_)

    mails = [
        SendEmail.model_validate_json(m.body)
        for m in it.queues.sent
        if m.routing_key == "messages.email"
    ]
    texts = [
        SendSms.model_validate_json(m.body)
        for m in it.queues.sent
        if m.routing_key == "messages.sms"
    ]
    assert [mail.to for mail in mails] == ["user1@example.com", "user2@example.com"]
    assert [text.phone for text in texts] == ["79000000001", "79000000002", "79000000003"]
    assert {each.posting_id for each in (*mails, *texts)} == {str(id_)}
    assert {each.expires_at for each in (*mails, *texts)} == {status.expires_at}
    assert "http://auth/abcDe4" in mails[0].text
    for message in it.queues.sent:
        assert message.properties.headers is not None
        assert message.properties.headers["traceparent"].startswith("00-aaaa")
        assert f'"id":"{message.properties.headers["x-ringback-id"]}"' in message.body.decode()
    assert (status.status, status.pages, status.receivers) == ("sending", 1, 3)
    assert status.messages == {"created": 5, "skipped": 1, "sent": 0, "failed": 0, "expired": 0}
    assert status.skipped == {"no e-mail address": 1}
