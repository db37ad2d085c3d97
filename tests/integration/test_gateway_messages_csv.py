"""M6 over HTTP: the messages of a mailing as CSV, through the real gateway and mailings."""

import asyncio
import csv
import signal
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import aiohttp
import asyncpg
import pytest

from tests.fakes.gateway import Caller, base_url
from tests.fakes.system import System, fresh_database, system
from tests.fakes.waiting import until

COLUMNS = ["id", "mailing_id", "client_id", "created_at", "sent_at", "status", "reason"]
UNKNOWN = "00000000-0000-4000-8000-000000000000"
# More than fits into the buffers of two sockets.
MANY = 100_000


@pytest.fixture(scope="module")
def own_url(database_url: str) -> Iterator[str]:
    with fresh_database(database_url) as url:
        yield url


@pytest.fixture(scope="module")
def services(
    shared_amqp_url: str, own_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    directory = tmp_path_factory.mktemp("system")
    with system(directory, shared_amqp_url, own_url, "mailings") as started:
        asyncio.run(started.ready())
        yield started


@pytest.fixture
async def call(services: System) -> AsyncIterator[Caller]:
    async with services.calling() as caller:
        yield caller


async def mailing(own_url: str, count: int, *, owner: str = "") -> str:
    """Store a paused mailing with this many messages, half of them sent; return its path."""
    mailing_id, posting_id = uuid4(), uuid4()
    connection = await asyncpg.connect(own_url)
    try:
        await connection.execute(
            "INSERT INTO mailings.mailings (id, client_id, fingerprint, channel, text,"
            " template_context, start_at, end_at, operator_codes, tags, status) VALUES"
            " ($1, $2, '', 'sms', 'x', '{}', now(), now() + '1 day', '{}', '{}', 'paused')",
            *(mailing_id, owner),
        )
        await connection.execute(
            "INSERT INTO mailings.postings (id, mailing_id, priority, due_at)"
            " VALUES ($1, $2, 'bulk', 'infinity')",
            *(posting_id, mailing_id),
        )
        await connection.execute(
            "INSERT INTO mailings.messages (posting_id, id, user_id, channel, status, reason, page)"
            " SELECT $1, gen_random_uuid(), n, 'sms', CASE n % 2 WHEN 0 THEN 'sent' ELSE 'failed'"
            " END, CASE n % 2 WHEN 1 THEN 'refused, \"for good\"' END, 0"
            " FROM generate_series(1, $2::int) n",
            *(posting_id, count),
        )
    finally:
        await connection.close()
    return f"/v1/mailings/{mailing_id}/messages.csv"


async def test_m6_the_messages_are_exported_page_by_page(call: Caller, own_url: str) -> None:
    path = await mailing(own_url, 2_500)
    response = await call("GET", path)
    assert (response.status, response.headers["Content-Type"]) == (200, "text/csv; charset=utf-8")
    header, *rows = csv.reader(response.text.splitlines())
    assert header == COLUMNS
    found = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    assert {int(row["client_id"]) for row in found} == set(range(1, 2_501))
    assert len({row["id"] for row in found}) == len(found) == 2_500
    assert {row["mailing_id"] for row in found} == {path.split("/")[3]}
    assert {(row["status"], row["reason"]) for row in found} == {
        ("sent", ""),
        ("failed", 'refused, "for good"'),
    }
    sent = await call("GET", f"{path}?status=sent")
    assert len(sent.text.splitlines()) == 1 + 1_250


async def test_m6_the_export_of_a_mailing_without_messages_is_a_header(
    call: Caller, own_url: str
) -> None:
    response = await call("GET", await mailing(own_url, 0))
    assert (response.status, response.text) == (200, ",".join(COLUMNS) + "\r\n")


async def test_m6_head_of_an_export_has_no_body(services: System, own_url: str) -> None:
    url = f"{await base_url(services['gateway'])}{await mailing(own_url, 1)}"
    # A connection for both: a body would be read as the next response.
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.head(url) as response:
            assert (response.status, response.content_type) == (200, "text/csv")
        async with session.get(url) as response:
            assert len((await response.text()).splitlines()) == 2


@pytest.mark.parametrize("query", ["status=gone", "limit=1"])
async def test_m6_a_wrong_query_is_a_422(call: Caller, own_url: str, query: str) -> None:
    (await call("GET", f"{await mailing(own_url, 1)}?{query}")).problem(422)


async def test_m6_the_messages_of_another_client_are_a_404(call: Caller, own_url: str) -> None:
    path = await mailing(own_url, 1, owner="shop")
    assert (await call.as_client("shop")("GET", path)).status == 200
    for other in (call, call.as_client("other")):
        (await other("GET", path)).problem(404)
    for unknown in (UNKNOWN, "x"):
        (await call("GET", f"/v1/mailings/{unknown}/messages.csv")).problem(404)


async def test_m6_an_interrupted_export_does_not_look_complete(
    services: System, own_url: str
) -> None:
    url = await base_url(services["gateway"]) + await mailing(own_url, MANY)
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200
        await response.content.readline()
        services["mailings"].signal(signal.SIGSTOP)
        try:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        finally:
            services["mailings"].signal(signal.SIGCONT)
    await until(lambda: services["gateway"].logged("export interrupted"))
    [line] = services["gateway"].logged("export interrupted")
    assert line["mailing_id"] in url
