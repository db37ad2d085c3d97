"""M1: the client directory, on a real database."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.mailings.app import SCHEMA
from services.mailings.clients.requests import ClientRequests
from services.mailings.clients.store import SQL, Directory
from shared.amqp.rpc import RequestContext
from shared.contracts.client_requests import ClientsImported
from shared.contracts.requests import Failure
from shared.ids import uuid7
from shared.postgres.pool import Database
from shared.process.health import Health
from tests.fakes.mailing import empty_mailings


class Clients:
    """The requests about clients, and the directory behind them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.directory = Directory(database)
        self._handlers = ClientRequests(self.directory).handlers()

    async def __call__(
        self, operation: str, owner: str | None = "shop", /, message_id: str = "", **body: Any
    ) -> Any:
        context = RequestContext(owner, None, message_id or uuid7().hex)
        return await self._handlers[operation](context, json.dumps(body).encode())

    async def add(self, *phones: str, owner: str | None = "shop", **fields: Any) -> ClientsImported:
        """Import these phones, in one request."""
        lines = [
            {"line": number, "client": client(phone, **fields)}
            for number, phone in enumerate(phones, 1)
        ]
        imported = await self("ImportClients", owner, lines=lines)
        assert isinstance(imported, ClientsImported)
        return imported


def client(phone: str = "79161234567", **fields: Any) -> dict[str, Any]:
    """Make a client."""
    return {"phone": phone, "timezone": "Europe/Moscow", **fields}


def phone(number: int) -> str:
    """Make a phone number; the operator code is 900 plus the millions."""
    return f"7{9000000000 + number}"


@pytest.fixture
async def clients(database_url: str) -> AsyncIterator[Clients]:
    database = Database(
        await empty_mailings(database_url), name="test", health=Health(), schema=SCHEMA
    )
    task = asyncio.create_task(database.run())
    await database.ready()
    yield Clients(database)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_m1_a_creation_that_is_delivered_again_returns_its_own_client(
    clients: Clients,
) -> None:
    message_id = uuid7().hex
    first = await clients("CreateClient", message_id=message_id, client=client())
    repeated = await clients("CreateClient", message_id=message_id, client=client())
    assert repeated == first
    assert first.operator_code == "916"
    other = await clients("CreateClient", client=client())
    assert isinstance(other, Failure)
    assert other.code == "conflict"


async def test_m1_an_import_that_is_delivered_again_returns_the_same_counts(
    clients: Clients,
) -> None:
    message_id = uuid7().hex
    await clients.add(phone(1))
    lines = [{"line": n, "client": client(phone(n))} for n in range(1, 4)]
    for _ in range(2):
        done = await clients("ImportClients", message_id=message_id, lines=lines)
        assert (done.created, done.updated, done.failed) == (2, 1, 0)


async def test_m1_an_import_replaces_known_clients_and_leaves_unchanged_ones_alone(
    clients: Clients,
) -> None:
    await clients.add(phone(1), phone(2), tag="vip")
    before = {c.fields.phone: c for c in await clients.directory.page("shop", UUID(int=0), 9)}
    lines = [
        {"line": 1, "client": client(phone(1), tag="vip")},
        {"line": 2, "client": client(phone(2), operator_code="999")},
    ]
    done = await clients("ImportClients", lines=lines)
    assert (done.created, done.updated, done.failed) == (0, 2, 0)
    after = {c.fields.phone: c for c in await clients.directory.page("shop", UUID(int=0), 9)}
    assert after[phone(1)] == before[phone(1)]
    assert after[phone(2)].id == before[phone(2)].id
    assert after[phone(2)].version == 2
    assert after[phone(2)].fields.tag is None
    assert after[phone(2)].fields.operator_code == "999"


async def test_m1_the_last_line_of_a_phone_wins_and_the_counts_add_up(clients: Clients) -> None:
    lines = [{"line": n, "client": client(tag=f"tag {n}")} for n in range(1, 4)]
    lines.append({"line": 4, "client": {"phone": "12"}})
    done = await clients("ImportClients", lines=lines)
    assert (done.created, done.updated, done.failed) == (1, 2, 1)
    assert [error.line for error in done.errors] == [4]
    assert "phone: is not a phone number such as 79161234567" in done.errors[0].reason
    assert "timezone: Field required" in done.errors[0].reason
    [stored] = await clients.directory.page("shop", UUID(int=0), 9)
    assert stored.fields.tag == "tag 3"


async def test_m1_owners_may_have_the_same_phone_and_see_only_their_own_clients(
    clients: Clients,
) -> None:
    owners = ("shop", "bank", None)
    created = {owner: await clients("CreateClient", owner, client=client()) for owner in owners}
    assert len({each.id for each in created.values()}) == len(owners)
    for owner in owners:
        for other, found in created.items():
            body = {"id": str(found.id)}
            got = await clients("GetClient", owner, **body)
            changed = await clients("ChangeClient", owner, **body, change={"tag": "x"})
            assert isinstance(got, Failure) == isinstance(changed, Failure) == (owner != other)
            if owner != other:
                deleted = await clients("DeleteClient", owner, **body)
                assert deleted.code == "not_found"
        page = await clients("ListClients", owner)
        assert [each.id for each in page.items] == [created[owner].id]


async def test_m1_a_page_has_the_clients_that_match_every_filter_in_the_order_of_their_ids(
    clients: Clients,
) -> None:
    zones = ("Europe/Moscow", "Asia/Omsk")
    tags = (None, "vip", "new")
    wanted: dict[UUID, tuple[str, str | None, str]] = {}
    for number in range(60):
        code = f"90{number % 4}"
        made = client(
            phone(number), operator_code=code, tag=tags[number % 3], timezone=zones[number % 2]
        )
        created = await clients("CreateClient", client=made)
        wanted[created.id] = (code, tags[number % 3], zones[number % 2])
    await clients.add(phone(1), owner="bank", tag="vip")
    filters: list[dict[str, Any]] = [
        {"operator_codes": codes, "tags": wanted_tags, "timezone": zone}
        for codes in ([], ["900"], ["901", "903", "903"])
        for wanted_tags in ([], ["vip"], ["vip", "new"])
        for zone in (None, "Asia/Omsk")
    ]
    for each in filters:
        found: list[UUID] = []
        while page := await clients.directory.page(
            "shop", found[-1] if found else UUID(int=0), 7, **each
        ):
            assert len(page) <= 7
            found += [one.id for one in page]
        codes, wanted_tags, zone = each.values()
        matching = sorted(
            id_
            for id_, (code, tag, timezone) in wanted.items()
            if (not codes or code in codes)
            and (not wanted_tags or tag in wanted_tags)
            and zone in (None, timezone)
        )
        assert found == matching, each
        if zone is None:
            counted = await clients.directory.count("shop", operator_codes=codes, tags=wanted_tags)
            assert sum(counted.values()) == len(matching), each


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"tags": ["tag 7"]},
        {"tags": ["tag 7", "tag 9"], "timezone": "Europe/Moscow"},
        {"operator_codes": ["907", "909"]},
        {"timezone": "Europe/Moscow"},
    ],
)
async def test_m1_a_page_reads_about_as_many_rows_as_it_has(
    clients: Clients, filters: dict[str, Any]
) -> None:
    await clients.database.execute(
        "INSERT INTO mailings.clients (client_id, id, phone, operator_code, tag, timezone)"
        " SELECT 'shop', gen_random_uuid(), 79000000000 + n, 900 + n % 10, 'tag ' || n % 20,"
        " 'Europe/Moscow' FROM generate_series(1, 20000) AS n"
    )
    await clients.database.execute("ANALYZE mailings.clients")
    for mode in ("generic", "custom"):
        plan = await explain(clients, filters, mode)
        assert plan["Actual Rows"] == 100
        assert rows_read(plan) <= 1200, json.dumps(plan, indent=1)


async def explain(clients: Clients, filters: dict[str, Any], mode: str) -> Any:
    """Return the plan of a page of 100 clients, as prepared statements have it."""

    def array(name: str) -> str:
        values = filters.get(name)
        return "NULL" if values is None else f"ARRAY{values}"

    zone = f"'{filters['timezone']}'" if "timezone" in filters else "NULL"
    values = f"'shop', '{UUID(int=0)}', 100, {array('operator_codes')}, {array('tags')}, {zone}"
    async with clients.database.transaction() as connection:
        await connection.execute(f"SET LOCAL plan_cache_mode = force_{mode}_plan")
        await connection.execute(
            "PREPARE page (text, uuid, int, text[], text[], text) AS " + SQL["clients"]
        )
        try:
            text = await connection.fetchval(
                f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE page ({values})"
            )
        finally:
            await connection.execute("DEALLOCATE page")
    return json.loads(text)[0]["Plan"]


def rows_read(plan: Any) -> int:
    """Return the number of rows that the scans of a plan have read, also those they discarded."""
    own = 0
    if "Scan" in plan["Node Type"] and "Relation Name" in plan:
        discarded = plan.get("Rows Removed by Filter", 0)
        own = (plan["Actual Rows"] + discarded) * plan["Actual Loops"]
    return int(own) + sum(rows_read(part) for part in plan.get("Plans", ()))


async def test_m1_a_search_by_phone_or_its_beginning_is_ordered_by_phone(clients: Clients) -> None:
    await clients.add(*(phone(number) for number in (30, 10, 20, 1_000_000)))
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await clients("ListClients", phone="79000", limit=2, cursor=cursor)
        found += [each.phone for each in page.items]
        if (cursor := page.next_cursor) is None:
            break
    assert found == [phone(10), phone(20), phone(30)]
    exact = await clients("ListClients", phone=phone(20))
    assert [each.phone for each in exact.items] == [phone(20)]
    assert (await clients("ListClients", phone=phone(20), tag="x")).items == []
    for cursor in ("x", "\0", "79000", str(uuid4())):
        refused = await clients("ListClients", phone="79000", cursor=cursor)
        assert [error.field for error in refused.errors] == ["cursor"]


async def test_m1_a_change_that_is_delivered_again_succeeds_despite_its_old_etag(
    clients: Clients,
) -> None:
    created = await clients("CreateClient", client=client(tag="a"))
    body: dict[str, Any] = {
        "id": str(created.id),
        "if_match": [created.etag],
        "change": {"tag": "b"},
    }
    first = await clients("ChangeClient", **body)
    assert (first.tag, first.etag) == ("b", '"2"')
    assert await clients("ChangeClient", **body) == first
    stale = await clients("ChangeClient", **body | {"change": {"tag": "c"}})
    assert stale.code == "precondition_failed"


async def test_m1_a_new_phone_brings_its_operator_code_unless_one_is_given(
    clients: Clients,
) -> None:
    created = await clients("CreateClient", client=client(operator_code="999"))

    async def change(**fields: Any) -> Any:
        return await clients("ChangeClient", id=str(created.id), change=fields)

    assert (await change(timezone="Asia/Omsk")).operator_code == "999"
    assert (await change(operator_code=None)).operator_code == "916"
    assert (await change(phone="79031234567")).operator_code == "903"
    changed = await change(phone="79051234567", operator_code="916")
    assert (changed.phone, changed.operator_code) == ("79051234567", "916")
    await clients("CreateClient", client=client("79030000000"))
    assert (await change(phone="79030000000")).code == "conflict"
