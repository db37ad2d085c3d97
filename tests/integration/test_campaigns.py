"""M2, M3: requests about mailings, on a real database."""

from typing import Any

import pytest

from services.mailings.campaigns import domain
from services.mailings.campaigns.domain import Action
from shared.contracts.mailing_requests import MailingDeleted
from shared.contracts.mailings import MailingStatus
from shared.contracts.requests import Failure
from shared.ids import uuid7
from tests.fakes.campaigns import CampaignProcess, add_messages, in_status, mailing, soon


@pytest.mark.parametrize("action", [action for action in Action if action is not Action.CHANGE])
async def test_m2_each_action_has_the_documented_effect_in_each_status(
    process: CampaignProcess, action: Action
) -> None:
    for status in MailingStatus:
        before = await in_status(process, status)
        result = await process.request(f"{action.title()}Mailing", id=str(before.id))
        effect = domain.effect(action, status)
        if effect is None:
            assert isinstance(result, Failure)
            assert result.code == "conflict"
            assert status in result.detail
            assert await process.get(before.id) == before
        elif effect is domain.Effect.DELETE:
            assert result == MailingDeleted(id=before.id)
            missing = await process.request("GetMailing", id=str(before.id))
            assert missing.code == "not_found"
        else:
            expected = {
                domain.Effect.NOTHING: status,
                domain.Effect.BEGIN: MailingStatus.RUNNING,
                domain.Effect.PAUSE: MailingStatus.PAUSED,
                domain.Effect.CANCEL: MailingStatus.CANCELLED,
            }[effect]
            assert result.status is expected
            changed = effect is not domain.Effect.NOTHING
            assert (result.etag != before.etag) == changed


async def test_m2_a_pause_is_answered_after_delivery_has_confirmed_it(
    process: CampaignProcess,
) -> None:
    created = await process.create()
    process.partners.unavailable = True
    result = await process.request("PauseMailing", id=str(created.id))
    assert isinstance(result, Failure)
    assert result.code == "unknown"
    assert "delivery has not confirmed" in result.detail
    assert (await process.get(created.id)).status == "paused"
    [posting] = await process.postings(created.id)
    assert not posting["is_due"]

    again = await process.request("PauseMailing", id=str(created.id))
    assert isinstance(again, Failure)
    process.partners.unavailable = False
    await process.worker.run_once(10)
    assert [status for _, _, status in process.partners.stops] == ["paused"]
    assert (await process.request("PauseMailing", id=str(created.id))).status == "paused"
    assert len(process.partners.stops) == 1


async def test_m2_a_resumed_mailing_continues_when_delivery_has_confirmed_it(
    process: CampaignProcess,
) -> None:
    created = await process.create()
    await process.request("PauseMailing", id=str(created.id))
    process.partners.unavailable = True
    await process.request("ResumeMailing", id=str(created.id))
    [posting] = await process.postings(created.id)
    assert not posting["is_due"]
    process.partners.unavailable = False
    await process.worker.run_once(10)
    [posting] = await process.postings(created.id)
    assert posting["is_due"]
    versions = [version for _, version, _ in process.partners.stops]
    assert versions == sorted(set(versions))


async def test_m2_a_late_confirmation_of_an_older_stop_changes_nothing(
    process: CampaignProcess,
) -> None:
    created = await process.create()
    process.partners.unavailable = True
    await process.request("PauseMailing", id=str(created.id))
    paused = await process.campaigns.get(created.id)
    assert paused is not None
    await process.request("ResumeMailing", id=str(created.id))
    await process.campaigns.stop_confirmed(paused)
    [posting] = await process.postings(created.id)
    assert not posting["is_due"]
    again = await process.campaigns.get(created.id)
    assert again is not None
    assert not again.is_stop_confirmed


async def test_m2_an_earlier_end_time_takes_the_lease_of_running_slices(
    process: CampaignProcess,
) -> None:
    created = await process.create()
    [claim] = await process.database.fetch(
        "UPDATE mailings.postings SET due_at = now() + interval '15 s', lease = lease + 1"
        " WHERE mailing_id = $1 RETURNING lease",
        created.id,
    )
    changed = await process.request(
        "ChangeMailing", id=str(created.id), changes={"end_at": soon(60)}
    )
    [posting] = await process.postings(created.id)
    assert posting["expires_at"] == changed.end_at < created.end_at
    assert posting["lease"] > claim["lease"]
    assert posting["is_due"]
    assert process.partners.stops == [(created.id, 3, "running")]


async def test_m2_a_running_mailing_can_only_change_its_end_and_its_rate(
    process: CampaignProcess,
) -> None:
    created = await process.create()
    result = await process.request(
        "ChangeMailing",
        id=str(created.id),
        changes={"text": "Other", "filter": {"tags": ["a"]}, "rate_per_minute": 5},
    )
    assert {error.field for error in result.errors} == {"text", "filter"}
    result = await process.request(
        "ChangeMailing", id=str(created.id), changes={"rate_per_minute": 5}
    )
    assert result.rate_per_minute == 5
    assert not process.partners.stops


async def test_m2_a_draft_can_change_everything(process: CampaignProcess) -> None:
    created = await process.create(draft=True, local_hours={"from": "09:00", "to": "21:00"})
    assert created.status == "draft"
    changed = await process.request(
        "ChangeMailing",
        id=str(created.id),
        changes={
            "template": "sms/phone_confirmation.md",
            "template_context": {"secret_code": "1"},
            "local_hours": None,
            "filter": {"operator_codes": ["916"]},
        },
    )
    assert (changed.text, changed.template) == (None, "sms/phone_confirmation.md")
    assert changed.local_hours is None
    assert changed.filter.operator_codes == ["916"]
    assert (await process.request("StartMailing", id=str(created.id))).status == "running"


async def test_m2_a_change_with_an_old_etag_is_rejected(process: CampaignProcess) -> None:
    created = await process.create(draft=True)
    changes = {"text": "Other"}
    message_id = uuid7().hex
    first = await process.request(
        "ChangeMailing",
        id=str(created.id),
        changes=changes,
        if_match=[created.etag],
        message_id=message_id,
    )
    # The broker delivers the request again: its change is made already.
    again = await process.request(
        "ChangeMailing",
        id=str(created.id),
        changes=changes,
        if_match=[created.etag],
        message_id=message_id,
    )
    assert again == first
    for operation in ("ChangeMailing", "StartMailing", "DeleteMailing"):
        result = await process.request(
            operation, id=str(created.id), if_match=['"1"'], changes={"text": "Third"}
        )
        assert result.code == "precondition_failed"


async def test_m2_a_repeated_creation_has_no_effect_and_a_different_one_is_a_conflict(
    process: CampaignProcess,
) -> None:
    body = mailing()
    first = await process.request("CreateMailing", mailing=body, idempotency_key="k")
    assert await process.request("CreateMailing", mailing=body, idempotency_key="k") == first
    other = body | {"text": "Other"}
    result = await process.request("CreateMailing", mailing=other, idempotency_key="k")
    assert result.code == "conflict"
    message_id = uuid7().hex
    twice = [
        await process.request("CreateMailing", mailing=body, message_id=message_id)
        for _ in range(2)
    ]
    assert twice[0] == twice[1] != first


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"end_at": "2020-01-01T00:00:00Z"}, "end_at"),
        ({"text": "{{ user.tag"}, "text"),
        ({"text": "{{ missing }}"}, "text"),
        ({"text": "---\nrequired: true\n---\nHi"}, "text"),
        ({"text": "bell \x07"}, "text"),
        ({"text": None, "template": "sms/none.md"}, "template"),
        ({"text": None, "template": "email/new_movies.md"}, "template"),
    ],
)
async def test_m2_a_mailing_that_could_never_be_sent_is_rejected(
    process: CampaignProcess, fields: dict[str, Any], field: str
) -> None:
    result = await process.request("CreateMailing", mailing=mailing(**fields))
    assert isinstance(result, Failure)
    assert result.code == "invalid"
    assert [error.field for error in result.errors] == [field]
    assert await process.request("ListMailings") == await process.request("ListMailings", "other")


async def test_m2_callers_see_only_their_own_mailings(process: CampaignProcess) -> None:
    created = await process.create()
    for owner in (None, "other"):
        listed = await process.request("ListMailings", owner)
        assert listed.items == []
        for operation in ("GetMailing", "PauseMailing", "DeleteMailing", "ListMailingMessages"):
            result = await process.request(operation, owner, id=str(created.id))
            assert result.code == "not_found"
        result = await process.request(
            "TestMailing", owner, id=str(created.id), test={"phone": "79160000000"}
        )
        assert result.code == "not_found"
    assert not process.broker.sent


async def test_m2_mailings_are_listed_newest_first_in_pages(process: CampaignProcess) -> None:
    created = [(await process.create(draft=number % 2 == 0)).id for number in range(5)]
    found, cursor = [], None
    while True:
        page = await process.request("ListMailings", limit=2, cursor=cursor)
        found += [item.id for item in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == created[::-1]
    drafts = await process.request("ListMailings", status="draft")
    assert [item.id for item in drafts.items] == created[::-2]
    assert (await process.request("ListMailings", cursor="x")).code == "invalid"


async def test_m2_and_row_33_a_page_of_large_mailings_ends_early(process: CampaignProcess) -> None:
    context = {"note": "x" * 900_000}
    created = [(await process.create(template_context=context)).id for _ in range(5)]
    first = await process.request("ListMailings", limit=1000)
    assert [item.id for item in first.items] == created[:1:-1]
    rest = await process.request("ListMailings", limit=1000, cursor=first.next_cursor)
    assert [item.id for item in rest.items] == created[1::-1]
    assert rest.next_cursor is None


async def test_m2_the_audience_counts_the_clients_that_match(process: CampaignProcess) -> None:
    await process.add_clients("Asia/Omsk", "Asia/Omsk", tag="a")
    await process.request(
        "CreateClient", client={"phone": "79260000000", "timezone": "Asia/Omsk", "tag": "b"}
    )
    counts = {}
    for name, filter_ in (
        ("all", {}),
        ("empty", {"operator_codes": [], "tags": []}),
        ("916", {"operator_codes": ["916"]}),
        ("b", {"tags": ["b"]}),
        ("none", {"operator_codes": ["916"], "tags": ["b"]}),
    ):
        counts[name] = (await process.request("CountAudience", filter=filter_)).clients
    assert counts == {"all": 3, "empty": 3, "916": 2, "b": 1, "none": 0}
    assert (await process.request("CountAudience", None)).clients == 0


async def test_m3_messages_are_listed_in_pages_over_all_time_zones(
    process: CampaignProcess,
) -> None:
    await process.add_clients("Europe/Moscow", "Asia/Tokyo")
    created = await process.create(local_hours={"from": "00:00", "to": "23:59"})
    await add_messages(process, created, 5)
    found, cursor = [], None
    while True:
        page = await process.request(
            "ListMailingMessages", id=str(created.id), limit=3, cursor=cursor
        )
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len({message.id for message in found}) == 10
    assert {message.mailing_id for message in found} == {created.id}
    assert {message.client_id for message in found} == {f"client-{n}" for n in range(5)}
    assert {message.sent_at for message in found} == {None}
    bad = await process.request("ListMailingMessages", id=str(created.id), cursor="x/y")
    assert bad.code == "invalid"
    none = await process.request("ListMailingMessages", id=str(created.id), status="sent")
    assert none.items == []
