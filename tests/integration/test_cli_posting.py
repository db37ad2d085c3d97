"""`ringback posting`, as a client of the gateway."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from services.sandbox.users import Directory
from tests.fakes.command import Output, ringback
from tests.fakes.gateway import Caller, base_url, ticket
from tests.fakes.mailing_outside import outside
from tests.fakes.sandbox import sandbox
from tests.fakes.system import System, fresh_database, system
from tests.fakes.waiting import until

USERS = 3000
ALL = "auth/api/v1/users/?page_size=1000"


@pytest.fixture(scope="module")
def services(
    shared_amqp_url: str, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    sources = {"RINGBACK_SOURCES": "127.0.0.1"}
    directory = tmp_path_factory.mktemp("system")
    with (
        fresh_database(database_url) as url,
        system(directory, shared_amqp_url, url, "mailings", **sources) as it,
    ):
        asyncio.run(it.ready())
        yield it


class Here:
    """The command, told where the gateway is; and a way to put postings there."""

    def __init__(self, url: str, call: Caller) -> None:
        self._url = url
        self._call = call

    async def __call__(self, *arguments: str, client: str | None = "shop") -> Output:
        given = {} if client is None else {"RINGBACK_TICKET": ticket(client)}
        return await ringback("posting", *arguments, "--url", self._url, amqp_url=None, **given)

    async def put(self, client: str | None = "shop", **fields: Any) -> str:
        body = {
            "receivers": f"http://127.0.0.1/{ALL}",
            "template": "sms/phone_confirmation.md",
            "delivery_type": ["sms"],
            "template_context": {"secret_code": "1234"},
        }
        made = await self._call.as_client(client)("POST", "/v1/postings", body | fields)
        return str(made.json["id"])

    async def get(self, path: str) -> Any:
        return (await self._call.as_client("shop")("GET", f"/v1/postings/{path}")).json

    async def until(self, posting: str, wanted: str) -> None:
        async def there() -> bool:
            return bool((await self.get(posting))["status"] == wanted)

        await until(there)


@pytest.fixture
async def posting(services: System) -> AsyncIterator[Here]:
    async with services.calling() as call:
        yield Here(await base_url(services["gateway"]), call)


async def test_e7_shows_how_far_a_posting_is(posting: Here, shared_amqp_url: str) -> None:
    async with sandbox(users=9) as box:  # of whom five get an SMS
        put = await posting.put(receivers=f"{box.url}{ALL}")
        await posting.until(put, "sending")
    given_out = (await posting.get(f"{put}/messages?status=created"))["items"]
    async with outside(shared_amqp_url, consuming=False) as around:
        await around.settle(put, given_out, "sent")
    await posting.until(put, "done")
    shown = await posting("show", put)
    assert shown.code == 0, shown.err
    assert "status:      done\n" in shown.out
    assert f"sent     5  {'#' * 22}\n" in shown.out
    assert "skipped  4  #" in shown.out
    assert "  3 sms not enabled\n" in shown.out
    as_json = await posting("show", put, "--json")
    assert json.loads(as_json.out)["messages"]["sent"] == 5


async def test_e7_lists_messages_page_after_page_by_status(posting: Here) -> None:
    async with sandbox(users=USERS) as box:
        put = await posting.put(receivers=f"{box.url}{ALL}")
        await posting.until(put, "sending")
    every = (await posting("messages", put, "--limit", "9999", "--json")).json_lines
    users = map(Directory(USERS).user, range(USERS))
    assert sorted(each["user_id"] for each in every) == sorted(user["id"] for user in users)
    skipped = await posting("messages", put, "--status", "skipped", "--limit", "1100")
    assert skipped.code == 0, skipped.err
    title, *rows = skipped.out.splitlines()
    assert title.split() == ["ID", "USER", "WAY", "STATUS", "WHY"]
    wanted = [each["user_id"] for each in every if each["status"] == "skipped"]
    assert [row.split()[1] for row in rows] == wanted[:1100]
    assert any(row.endswith("  sms not enabled") for row in rows)
    assert "1100 shown; there are more" in skipped.err


async def test_e7_lists_postings_newest_first_and_by_their_event(posting: Here) -> None:
    old = await posting.put(from_event="scan-7", template="sms/old.md")
    await posting.put("other", from_event="scan-7")
    free = await posting.put(None, from_event="scan-7")
    new = await posting.put(from_event="scan-8")
    listed = await posting("list", "--from-event", "scan-7")
    assert listed.code == 0, listed.err
    title, *rows = listed.out.splitlines()
    assert title.split()[:5] == ["ID", "TEMPLATE", "STATUS", "ACCEPTED", "AT"]
    assert [row.split()[0] for row in rows] == [free, old]
    assert rows[1].split()[1] == "sms/old.md"
    assert "2 shown; that is all" in listed.err
    newest = await posting("list", "--limit", "2", "--json")
    assert [each["id"] for each in newest.json_lines] == [new, free]


async def test_s9_another_client_finds_nothing(posting: Here) -> None:
    mine = await posting.put()
    for command, client in (("show", None), ("messages", "x")):
        missing = await posting(command, mine, client=client)
        assert (missing.code, missing.out) == (1, "")
        assert "there is no such posting (status 404)" in missing.err
