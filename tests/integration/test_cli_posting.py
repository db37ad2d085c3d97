"""`ringback posting`, as a client of the gateway."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from services.sandbox.users import Directory
from tests.fakes.command import Output, ringback
from tests.fakes.gateway import Caller, base_url, ticket
from tests.fakes.mailings_client import mailings_client
from tests.fakes.sandbox import running_sandbox
from tests.fakes.system import StartSystem, System
from tests.fakes.waiting import until

USERS = 3000
ALL = "auth/api/v1/users/?page_size=1000"


@pytest.fixture(scope="module")
def services(start_system: StartSystem) -> Iterator[System]:
    with start_system("mailings", RINGBACK_SOURCES="127.0.0.1") as started:
        yield started


class PostingCommand:
    """The command as a client of the gateway, and a way to create postings."""

    def __init__(self, url: str, call: Caller) -> None:
        self._url = url
        self._call = call

    async def __call__(self, *arguments: str, client: str | None = "shop") -> Output:
        settings = {} if client is None else {"RINGBACK_TICKET": ticket(client)}
        return await ringback("posting", *arguments, "--url", self._url, amqp_url=None, **settings)

    async def create(self, client: str | None = "shop", **fields: Any) -> str:
        body = {
            "receivers": f"http://127.0.0.1/{ALL}",
            "template": "sms/phone_confirmation.md",
            "delivery_type": ["sms"],
            "template_context": {"secret_code": "1234"},
        }
        created = await self._call.as_client(client)("POST", "/v1/postings", body | fields)
        return str(created.json["id"])

    async def get(self, path: str) -> Any:
        return (await self._call.as_client("shop")("GET", f"/v1/postings/{path}")).json

    async def until(self, posting: str, status: str) -> None:
        async def arrived() -> bool:
            return bool((await self.get(posting))["status"] == status)

        await until(arrived)


@pytest.fixture
async def posting(services: System) -> AsyncIterator[PostingCommand]:
    async with services.calling() as call:
        yield PostingCommand(await base_url(services["gateway"]), call)


async def test_e7_show_prints_the_progress_of_a_posting(
    posting: PostingCommand, shared_amqp_url: str
) -> None:
    async with running_sandbox(users=9) as sandbox:  # seven of them have a phone
        posting_id = await posting.create(receivers=f"{sandbox.url}{ALL}")
        await posting.until(posting_id, "sending")
    published = (await posting.get(f"{posting_id}/messages?status=created"))["items"]
    async with mailings_client(shared_amqp_url, consuming=False) as client:
        await client.settle(posting_id, published, "sent")
    await posting.until(posting_id, "done")
    shown = await posting("show", posting_id)
    assert shown.code == 0, shown.err
    assert "status:      done\n" in shown.out
    assert f"sent     7  {'#' * 31}\n" in shown.out
    assert "skipped  2  #" in shown.out
    assert "  2 no phone\n" in shown.out
    as_json = await posting("show", posting_id, "--json")
    assert json.loads(as_json.out)["messages"]["sent"] == 7


async def test_e7_messages_lists_all_pages_and_filters_by_status(posting: PostingCommand) -> None:
    async with running_sandbox(users=USERS) as sandbox:
        posting_id = await posting.create(
            receivers=f"{sandbox.url}{ALL}",
            template="email/welcome.md",
            template_context={"username": "ann"},
        )
        await posting.until(posting_id, "sending")
    all_messages = (await posting("messages", posting_id, "--limit", "9999", "--json")).json_lines
    users = map(Directory(USERS).user, range(USERS))
    assert sorted(each["user_id"] for each in all_messages) == sorted(user["id"] for user in users)
    skipped = await posting("messages", posting_id, "--status", "skipped", "--limit", "1100")
    assert skipped.code == 0, skipped.err
    title, *rows = skipped.out.splitlines()
    assert title.split() == ["ID", "USER", "CHANNEL", "STATUS", "REASON"]
    expected = [each["user_id"] for each in all_messages if each["status"] == "skipped"]
    assert [row.split()[1] for row in rows] == expected[:1100]
    assert any(row.endswith("  sms not enabled") for row in rows)
    assert "1100 shown; more follow" in skipped.err


async def test_e7_list_prints_the_newest_first_and_filters_by_event(
    posting: PostingCommand,
) -> None:
    old = await posting.create(from_event="scan-7", template="sms/old.md")
    await posting.create("other", from_event="scan-7")
    anonymous = await posting.create(None, from_event="scan-7")
    new = await posting.create(from_event="scan-8")
    listed = await posting("list", "--from-event", "scan-7")
    assert listed.code == 0, listed.err
    title, *rows = listed.out.splitlines()
    assert title.split()[:5] == ["ID", "TEMPLATE", "STATUS", "ACCEPTED", "AT"]
    assert [row.split()[0] for row in rows] == [anonymous, old]
    assert rows[1].split()[1] == "sms/old.md"
    assert "2 shown; no more follow" in listed.err
    newest = await posting("list", "--limit", "2", "--json")
    assert [each["id"] for each in newest.json_lines] == [new, anonymous]


async def test_s9_a_posting_of_another_client_is_not_found(posting: PostingCommand) -> None:
    posting_id = await posting.create()
    for command, client in (("show", None), ("messages", "x")):
        missing = await posting(command, posting_id, client=client)
        assert (missing.code, missing.out) == (1, "")
        assert "the posting does not exist (status 404)" in missing.err
