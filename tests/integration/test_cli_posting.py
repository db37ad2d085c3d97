"""`ringback posting`, as a client of the gateway."""

import json
from collections.abc import AsyncIterator, Iterator

import pytest

from shared.contracts.posting_requests import PostingMessage
from tests.fakes.command import Output, ringback
from tests.fakes.gateway import base_url, calling, gateway, ticket
from tests.fakes.mailings import AT, FakeMailings, fake_mailings
from tests.fakes.service import Service
from tests.fakes.waiting import until

POSTING = {
    "receivers": "http://auth/api/v1/users/?id=7",
    "template": "email/welcome.md",
    "delivery_type": ["email"],
}
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def gateway_service(
    shared_amqp_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with gateway(tmp_path_factory.mktemp("gateway"), shared_amqp_url) as it:
        yield it


@pytest.fixture
async def mailings(shared_amqp_url: str) -> AsyncIterator[FakeMailings]:
    async with fake_mailings(shared_amqp_url) as it:
        yield it


class Here:
    """The command, told where the gateway is; and a posting of the client `shop` there."""

    def __init__(self, url: str, posting: str) -> None:
        self.posting = posting
        self._url = url

    async def __call__(self, *arguments: str, client: str | None = "shop") -> Output:
        given = {} if client is None else {"RINGBACK_TICKET": ticket(client)}
        return await ringback("posting", *arguments, "--url", self._url, amqp_url=None, **given)


@pytest.fixture
async def posting(gateway_service: Service, mailings: FakeMailings) -> Here:
    assert mailings
    url = await base_url(gateway_service)
    await until(lambda: gateway_service.logged("broker is ready"))
    async with calling(url) as call:
        accepted = await call.as_client("shop")("POST", "/v1/postings", POSTING)
    return Here(url, accepted.json["id"])


async def test_e7_shows_how_far_a_posting_is(posting: Here, mailings: FakeMailings) -> None:
    mailings.progress = {"status": "done", "messages": {"sent": 3}, "receivers": 3, "pages": 1}
    shown = await posting("show", posting.posting)
    assert shown.code == 0, shown.err
    assert "status:      done\n" in shown.out
    assert f"sent     3  {'#' * 40}\n" in shown.out
    as_json = await posting("show", posting.posting, "--json")
    assert json.loads(as_json.out)["messages"] == {"sent": 3}


async def test_e7_lists_messages_page_after_page_by_status(
    posting: Here, mailings: FakeMailings
) -> None:
    mailings.messages = [
        PostingMessage.model_validate(
            {
                "id": f"00000000-0000-4000-8000-{number:012}",
                "user_id": f"user-{number}",
                "way": "email",
                "status": "sent" if number % 2 else "failed",
                "why": None if number % 2 else "550 no such mailbox",
                "created_at": AT,
                "settled_at": AT,
            }
        )
        for number in range(2400)
    ]
    failed = await posting("messages", posting.posting, "--status", "failed", "--limit", "1100")
    assert failed.code == 0, failed.err
    title, *rows = failed.out.splitlines()
    assert title.split() == ["ID", "USER", "WAY", "STATUS", "SETTLED", "AT", "WHY"]
    assert [row.split()[1] for row in rows] == [f"user-{2 * n}" for n in range(1100)]
    assert rows[0].endswith("550 no such mailbox")
    assert "1100 shown; there are more" in failed.err
    every = await posting("messages", posting.posting, "--limit", "9999", "--json")
    assert len(every.json_lines) == 2400


async def test_s9_another_client_finds_nothing(posting: Here) -> None:
    for client, identity in ((None, posting.posting), ("x", posting.posting), ("shop", UNKNOWN)):
        for command in ("show", "messages"):
            missing = await posting(command, identity, client=client)
            assert (missing.code, missing.out) == (1, "")
            assert "there is no such posting (status 404)" in missing.err
