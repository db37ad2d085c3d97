"""M2: a mailing is tested with a message to one phone."""

from typing import Any

from shared.contracts.mailing_requests import Mailing, TestSent
from shared.contracts.requests import Failure
from shared.ids import uuid7
from tests.fakes.campaigns import OWNER, CampaignProcess


async def test_m2_a_test_message_is_urgent_and_belongs_to_no_mailing(
    process: CampaignProcess,
) -> None:
    created = await process.create(draft=True, text="Hi {{ user.phone }}")
    message_id = uuid7().hex
    sent = [
        await process.request(
            "TestMailing", id=str(created.id), test={"phone": "79161234567"}, message_id=message_id
        )
        for _ in range(2)
    ]
    assert sent[0] == sent[1]  # a request that is delivered again sends the same message
    message = process.broker.sent[0]
    assert message.routing_key == "messages.sms.urgent"
    body = process.broker.sent_bodies()[0]
    assert body == {
        "id": str(sent[0].message_id),
        "phone": "79161234567",
        "text": "Hi 79161234567",
    }
    assert (await process.get(created.id)).status == "draft"
    assert not await process.postings(created.id)


async def test_m2_a_test_message_to_a_client_has_their_fields(process: CampaignProcess) -> None:
    await process.add_clients("Asia/Tokyo", tag="Ann")
    await process.request(
        "CreateClient", "other", client={"phone": "79260000000", "timezone": "UTC", "tag": "Bob"}
    )
    created = await process.create(
        text="{{ user.tag|default('nobody') }} {{ user.timezone }} {{ user.operator_code }}"
    )
    for phone in ("79160000000", "79260000000"):
        await process.request("TestMailing", id=str(created.id), test={"phone": phone})
    assert [body["text"] for body in process.broker.sent_bodies()] == [
        "Ann Asia/Tokyo 916",
        "nobody UTC 926",
    ]


async def test_m2_a_mailing_has_ten_tests_a_minute(process: CampaignProcess) -> None:
    created, another = await process.create(), await process.create(text="Another")

    async def test(mailing: Mailing, owner: str = OWNER) -> Any:
        return await process.request(
            "TestMailing", owner, id=str(mailing.id), test={"phone": "79160000000"}
        )

    results = [await test(created) for _ in range(12)]
    assert [isinstance(result, Failure) for result in results] == [False] * 10 + [True] * 2
    assert results[-1].code == "too_many_requests"
    assert 0 < results[-1].retry_after <= 6
    assert isinstance(await test(another), TestSent)
    assert (await test(created, "other")).code == "not_found"
    await process.database.execute(
        "UPDATE mailings.mailings SET tests_until = tests_until - interval '6 s'"
    )
    results = [await test(created) for _ in range(2)]
    assert [isinstance(result, Failure) for result in results] == [False, True]
