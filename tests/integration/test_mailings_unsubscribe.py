"""E4: recipients who have unsubscribed from a kind of e-mail get no more of it."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.amqp.rpc import RequestContext
from tests.fakes.mailing import (
    Mailings,
    UserLists,
    empty_mailings,
    posting,
    running_mailings,
    user,
    user_lists,
)

URL = "https://ringback.example.com/v1/unsubscribe"


@pytest.fixture
async def setup(database_url: str) -> AsyncIterator[tuple[Mailings, UserLists]]:
    url = await empty_mailings(database_url)
    async with (
        user_lists() as lists,
        running_mailings(url, {"auth": lists.url}, unsubscribe_url=URL) as mailings,
    ):
        lists.users["all"] = [user(1), user(2)]
        yield mailings, lists


async def change(mailings: Mailings, token: str, *, subscribed: bool) -> Any:
    body = json.dumps({"token": token, "subscribed": subscribed}).encode()
    handler = mailings.requests["ChangeSubscription"]
    return (await handler(RequestContext(None), body)).model_dump(mode="json")


async def token_of(mailings: Mailings, number: int, **fields: Any) -> str:
    """Send a posting, and return the token in the link of a user."""
    posting_id = await mailings.post(posting(**fields))
    await mailings.expand(posting_id)
    (body,) = (
        body for body in mailings.broker.bodies(posting_id) if body["user_id"] == f"user-{number}"
    )
    return str(body["unsubscribe_url"].removeprefix(f"{URL}?token="))


async def skipped(mailings: Mailings, **fields: Any) -> tuple[list[str], dict[str, int]]:
    """Send a posting; return who gets it, and the skipped messages by reason."""
    posting_id = await mailings.post(posting(**fields))
    status = await mailings.expand(posting_id)
    bodies = mailings.broker.bodies(posting_id)
    return [body["user_id"] for body in bodies], status.skipped


async def test_finding_c14_an_unsubscribed_address_gets_no_more_of_this_kind(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, lists = setup
    token = await token_of(mailings, 1)
    for _ in range(2):
        assert (await change(mailings, token, subscribed=False)) == {"subscribed": False}
        assert await skipped(mailings) == (["user-2"], {"unsubscribed": 1})
    # The address has unsubscribed, whoever lists it and however it is written.
    lists.users["other"] = [user(7, email="USER1@example.com"), user(8)]
    other = {"receivers": "http://auth/lists/other/"}
    assert await skipped(mailings, **other) == (["user-8"], {"unsubscribed": 1})
    for _ in range(2):
        assert (await change(mailings, token, subscribed=True)) == {"subscribed": True}
        assert await skipped(mailings) == (["user-1", "user-2"], {})


async def test_finding_c14_other_kinds_and_channels_and_required_mails_are_still_sent(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, _ = setup
    await change(mailings, await token_of(mailings, 1), subscribed=False)
    both = ["user-1", "user-2"]
    confirmation = {
        "template": "email/email_confirmation.md",
        "template_context": {"confirmation_link": "https://shop.example.com/c"},
    }
    code = {
        "template": "sms/phone_confirmation.md",
        "delivery_type": ["sms"],
        "template_context": {"secret_code": "1234"},
    }
    reactions = [{"type": "like", "total": 7, "target": "https://shop.example.com/reviews/7"}]
    summary = {
        "template": "email/reactions_summary.md",
        "template_context": {"stats": reactions},
    }
    for other in (confirmation, code, summary):
        assert (await skipped(mailings, **other))[0] == both


async def test_finding_c14_a_forged_token_changes_nothing(
    setup: tuple[Mailings, UserLists],
) -> None:
    mailings, _ = setup
    token = await token_of(mailings, 1)
    for forged in ("x", token[1:], token[::-1], token[:21] + token[22:] + "A"):
        assert (await change(mailings, forged, subscribed=False))["code"] == "invalid"
    assert await skipped(mailings) == (["user-1", "user-2"], {})
