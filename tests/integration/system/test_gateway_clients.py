"""M1 over HTTP: the client directory through the real gateway and mailings."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.gateway import Caller, Response
from tests.fakes.service import Service, running
from tests.fakes.system import System, fresh_database, system
from tests.fakes.waiting import until

UNKNOWN = "00000000-0000-4000-8000-000000000000"
CSV = "text/csv"
JSON_LINES = "application/x-ndjson"


@pytest.fixture
async def call(services: System) -> AsyncIterator[Caller]:
    async with services.calling() as caller:
        yield caller


@pytest.fixture
def shop(call: Caller, request: pytest.FixtureRequest) -> Caller:
    """Return a caller that no other test uses."""
    return call.as_client(request.node.name[:200])


def client(**fields: Any) -> dict[str, Any]:
    return {"phone": "79161234567", "timezone": "Europe/Moscow", **fields}


async def import_csv(call: Caller, text: str | bytes) -> Response:
    return await call("POST", "/v1/clients/import", raw=text, Content_Type=CSV)


async def all_clients(call: Caller, query: str = "") -> list[dict[str, Any]]:
    """Return all clients that a query finds, page by page."""
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = await call("GET", f"/v1/clients?limit=3&{query}{cursor}")
        assert page.status == 200, page.text
        assert len(page.json["items"]) <= 3
        found += page.json["items"]
        if page.json["next_cursor"] is None:
            return found
        cursor = f"&cursor={page.json['next_cursor']}"


async def test_m1_a_client_is_created_read_changed_and_deleted(shop: Caller) -> None:
    created = await shop("POST", "/v1/clients", client(tag="regular"))
    assert created.status == 201, created.text
    path = created.headers["Location"]
    assert path == f"/v1/clients/{created.json['id']}"
    assert created.json["operator_code"] == "916"
    assert created.headers["ETag"] == created.json["etag"]

    found = await shop("GET", path)
    assert (found.status, found.json) == (200, created.json)
    unchanged = await shop("GET", path, If_None_Match=found.headers["ETag"])
    assert (unchanged.status, unchanged.text) == (304, "")

    changed = await shop("PATCH", path, {"tag": None, "timezone": "Asia/Omsk"})
    assert changed.status == 200, changed.text
    assert changed.json | {"updated_at": "", "etag": ""} == created.json | {
        "tag": None,
        "timezone": "Asia/Omsk",
        "updated_at": "",
        "etag": "",
    }
    assert changed.headers["ETag"] == changed.json["etag"] != created.json["etag"]

    deleted = await shop("DELETE", path)
    assert (deleted.status, deleted.text) == (204, "")
    for method in ("GET", "DELETE"):
        assert (await shop(method, path)).problem(404)["result"] == "not_found"
    (await shop("PATCH", path, {"tag": "x"})).problem(404)


async def test_m1_a_change_with_an_old_etag_is_412(shop: Caller) -> None:
    created = await shop("POST", "/v1/clients", client())
    path, old = created.headers["Location"], created.headers["ETag"]
    changed = await shop("PATCH", path, {"tag": "a"}, If_Match=old)
    assert changed.status == 200
    (await shop("PATCH", path, {"tag": "b"}, If_Match=old)).problem(412)
    (await shop("DELETE", path, If_Match=old)).problem(412)
    assert (await shop("GET", path)).json["tag"] == "a"
    assert (await shop("DELETE", path, If_Match=changed.headers["ETag"])).status == 204


async def test_m1_a_phone_that_is_in_use_is_409(shop: Caller) -> None:
    first = await shop("POST", "/v1/clients", client())
    (await shop("POST", "/v1/clients", client(tag="other"))).problem(409)
    second = await shop("POST", "/v1/clients", client(phone="79030000001"))
    change = {"phone": "79161234567"}
    (await shop("PATCH", second.headers["Location"], change)).problem(409)
    assert (await shop("DELETE", first.headers["Location"])).status == 204
    assert (await shop("PATCH", second.headers["Location"], change)).status == 200


@pytest.mark.parametrize(
    ("fields", "rejected"),
    [
        ({"phone": "89161234567"}, "phone"),
        ({"phone": "7916123456"}, "phone"),
        ({"phone": "7916123456\u0667"}, "phone"),
        ({"phone": "79161234567\n"}, "phone"),
        ({"phone": 79161234567}, "phone"),
        ({"operator_code": "91"}, "operator_code"),
        ({"tag": ""}, "tag"),
        ({"tag": "a\u0000b"}, "tag"),
        ({"tag": "x" * 101}, "tag"),
        ({"timezone": "Mars/Olympus_Mons"}, "timezone"),
        ({"timezone": "../etc/passwd"}, "timezone"),
        ({"timezone": None}, "timezone"),
        ({"name": "Ann"}, "name"),
    ],
)
async def test_m1_every_wrong_field_is_named(
    call: Caller, fields: dict[str, Any], rejected: str
) -> None:
    response = await call("POST", "/v1/clients", client() | fields)
    assert response.rejected_fields() == {rejected}


async def test_m1_a_change_needs_a_field_and_only_known_ones(shop: Caller) -> None:
    created = await shop("POST", "/v1/clients", client())
    path = created.headers["Location"]
    for body, rejected in (({}, ""), ({"phone": None}, ""), ({"id": UNKNOWN}, "id")):
        assert rejected in (await shop("PATCH", path, body)).rejected_fields()
    assert (await shop("PATCH", path, [])).status == 422


async def test_m1_clients_are_listed_by_filters_and_searched_by_phone(shop: Caller) -> None:
    zones = ("Europe/Moscow", "Asia/Omsk")
    lines = [f"7916000000{n},{'vip' if n % 3 else ''},{zones[n % 2]}" for n in range(8)]
    imported = await import_csv(shop, "\n".join(("phone,tag,timezone", *lines, "79030000000,,UTC")))
    assert imported.json == {"created": 9, "updated": 0, "failed": 0, "errors": []}
    assert len(await all_clients(shop)) == 9
    ids = [each["id"] for each in await all_clients(shop)]
    assert ids == sorted(ids)
    for query, count in (
        ("operator_code=916", 8),
        ("tag=vip", 5),
        ("timezone=Asia/Omsk", 4),
        ("tag=vip&timezone=Asia/Omsk&operator_code=916", 3),
        ("phone=7916", 8),
        ("phone=79160000003", 1),
        ("phone=7903&tag=vip", 0),
    ):
        assert len(await all_clients(shop, query)) == count, query
    for name, value in (("phone", "8"), ("operator_code", "x"), ("timezone", "x"), ("cursor", "")):
        assert (await shop("GET", f"/v1/clients?{name}={value}")).rejected_fields() == {name}


async def test_m1_s9_callers_see_only_their_own_clients(call: Caller) -> None:
    one, other = call.as_client("isolated-1"), call.as_client("isolated-2")
    created = [await each("POST", "/v1/clients", client()) for each in (one, other, call)]
    paths = [response.headers["Location"] for response in created]
    assert len(set(paths)) == 3
    for caller, foreign in ((one, paths[1]), (one, paths[2]), (call, paths[0])):
        for method, body in (("GET", None), ("PATCH", {"tag": "x"}), ("DELETE", None)):
            (await caller(method, foreign, body)).problem(404)
    assert [each["id"] for each in await all_clients(one)] == [created[0].json["id"]]
    imported = await import_csv(one, "phone,timezone\n79161234567,Asia/Omsk\n")
    assert imported.json["updated"] == 1
    assert (await other("GET", paths[1])).json == created[1].json
    assert (await call("DELETE", paths[2])).status == 204


async def test_m1_row_33_an_id_that_is_not_a_uuid_is_not_found(call: Caller) -> None:
    for path in (UNKNOWN, "1", "import'--"):
        (await call("GET", f"/v1/clients/{path}")).problem(404)


async def test_m1_an_import_keeps_good_lines_and_names_bad_ones(shop: Caller) -> None:
    text = (
        b"\xef\xbb\xbfTimezone, phone ,tag\r\n"
        b"Europe/Moscow,79160000001,vip\r\n"
        b"\r\n"
        b"Mars/Olympus,79160000002,\n"
        b'Europe/Moscow,79160000003,"a, b"\n'
        b'Europe/Moscow,79160000004,"open\n'
        b"Europe/Moscow,79160000005\n"
        b"Europe/Moscow,79160000006,\xff\n"
        b"Asia/Omsk,79160000007," + b"x" * 3000 + b"\n"
        b"Asia/Omsk,8916,\n"
        b"Asia/Omsk,79160000009,a\x00b\n"
        b"Asia/Omsk,79160000008,last without a line break"
    )
    done = (await import_csv(shop, text)).json
    assert {name: done[name] for name in ("created", "updated", "failed")} == {
        "created": 3,
        "updated": 0,
        "failed": 7,
    }
    assert [(each["line"], each["reason"]) for each in done["errors"]] == [
        (4, "timezone: is not a time zone such as Europe/Moscow"),
        (6, "is not CSV: unexpected end of data"),
        (7, "has 2 fields, not 3"),
        (8, "is not UTF-8"),
        (9, "is longer than 2048 bytes"),
        (10, "phone: is not a phone number such as 79161234567"),
        (11, "tag: is not a tag: 1 to 100 characters without control characters"),
    ]
    stored = {each["phone"]: each["tag"] for each in await all_clients(shop)}
    assert stored == {
        "79160000001": "vip",
        "79160000003": "a, b",
        "79160000008": "last without a line break",
    }


async def test_m1_an_import_of_json_lines_keeps_good_lines_and_names_bad_ones(shop: Caller) -> None:
    lines = [
        json.dumps(client(tag="\u2028ü")),
        "[1]",
        "{",
        '{"phone": NaN}',
        json.dumps(client(phone="79160000002", name="Ann")),
        "",
        json.dumps(client(phone="79160000003", operator_code="999")),
        '{"phone": "79160000004", "timezone": "UTC", "tag": "\\ud800"}',
        "[" * 1000,
    ]
    response = await shop(
        "POST", "/v1/clients/import", raw="\n".join(lines), Content_Type=JSON_LINES
    )
    done = response.json
    assert (done["created"], done["updated"], done["failed"]) == (2, 0, 6), response.text
    assert [each["line"] for each in done["errors"]] == [2, 3, 4, 5, 8, 9]
    assert done["errors"][0]["reason"] == "is not a JSON object"
    assert done["errors"][3]["reason"] == "name: Extra inputs are not permitted"
    assert {each["operator_code"] for each in await all_clients(shop)} == {"916", "999"}


async def test_m1_a_repeated_import_changes_nothing(shop: Caller) -> None:
    text = "phone,timezone\n" + "".join(f"7916{n:07d},UTC\n" for n in range(2500))
    first, second = [(await import_csv(shop, text)).json for _ in range(2)]
    assert first == {"created": 2500, "updated": 0, "failed": 0, "errors": []}
    assert second == {"created": 0, "updated": 2500, "failed": 0, "errors": []}
    assert {each["etag"] for each in await all_clients(shop, "phone=7916000000")} == {'"1"'}


async def test_m1_the_last_line_of_a_phone_wins_also_in_another_batch(shop: Caller) -> None:
    lines = [f"79160000001,{n}" for n in range(2500)]
    text = "\n".join(("phone,tag,timezone", *(f"{line},UTC" for line in lines)))
    done = (await import_csv(shop, text)).json
    assert (done["created"], done["updated"]) == (1, 2499)
    assert [each["tag"] for each in await all_clients(shop)] == ["2499"]


@pytest.mark.parametrize(
    "header",
    ["", "phone", "phone,timezone,name", "phone,timezone,phone", '"phone,timezone', "\xff"],
)
async def test_m1_a_csv_with_a_wrong_header_imports_nothing(shop: Caller, header: str) -> None:
    text = header.encode("latin-1") + b"\n79160000001,UTC,UTC\n"
    assert (await import_csv(shop, text)).rejected_fields() == {"header"}
    assert await all_clients(shop) == []


async def test_m1_errors_are_listed_up_to_a_limit_and_all_are_counted(shop: Caller) -> None:
    text = "phone,timezone\n" + "1,UTC\n" * 3000
    done = (await import_csv(shop, text)).json
    assert (done["created"], done["failed"], len(done["errors"])) == (0, 3000, 1000)


async def test_m1_an_import_of_another_or_a_compressed_media_type_is_415(call: Caller) -> None:
    for headers in (
        {"Content_Type": "application/json"},
        {"Content_Type": CSV, "Content_Encoding": "gzip"},
    ):
        (await call("POST", "/v1/clients/import", raw="phone", **headers)).problem(415)


async def numbered(first: int, count: int) -> AsyncIterator[bytes]:
    """Yield lines of different clients, 100 at a time."""
    for start in range(first, first + count, 100):
        lines = (f"7{9_000_000_000 + number},UTC\n" for number in range(start, start + 100))
        yield "".join(lines).encode()


# A million lines are ten times as long and take ten times as much time. Keeping these 100,000 would
# take 30 MB: far more than the limit, which is ten times the growth that one batch causes.
async def test_m1_a_long_import_takes_constant_memory(services: System, shop: Caller) -> None:
    async def import_many(first: int, count: int) -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b"phone,timezone\n"
            async for chunk in numbered(first, count):
                yield chunk

        done = await shop("POST", "/v1/clients/import", raw=body(), Content_Type=CSV)
        assert (done.json["created"], done.json["failed"]) == (count, 0)

    await import_many(0, 5_000)
    before = {name: peak_memory(service) for name, service in services.items()}
    await import_many(5_000, 100_000)
    grown = {name: peak_memory(service) - before[name] for name, service in services.items()}
    assert all(each <= 15 for each in grown.values()), grown


def peak_memory(service: Service) -> float:
    """Return the largest resident memory of a process so far, in MB."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


@pytest.fixture
def own_services(amqp_url: str, database_url: str, tmp_path: Path) -> Iterator[tuple[System, str]]:
    """Yield services that a test may kill, and the URL of their database."""
    settings = {"RINGBACK_GATEWAY_REQUEST_TIMEOUT": "5"}
    with (
        fresh_database(database_url) as url,
        system(tmp_path, amqp_url, url, "mailings", **settings) as started,
    ):
        asyncio.run(started.ready())
        yield started, url


async def test_m1_an_interrupted_import_says_so_and_a_repeat_completes_it(
    own_services: tuple[System, str], amqp_url: str, tmp_path: Path
) -> None:
    services, database_url = own_services

    async def body(killed: Service | None) -> AsyncIterator[bytes]:
        yield b"phone,timezone\n"
        async for chunk in numbered(0, 3_000):
            yield chunk
        if killed is not None:
            # A batch is sent after the response to the one before.
            await until(lambda: len(killed.logged("clients imported")) > 1)
            killed.process.kill()
        async for chunk in numbered(3_000, 3_000):
            yield chunk

    async def import_all(call: Caller, killed: Service | None = None) -> Response:
        return await call("POST", "/v1/clients/import", raw=body(killed), Content_Type=CSV)

    async with services.calling() as call:
        interrupted = await import_all(call, services["mailings"])
        assert "lines were imported before" in interrupted.problem(504)["detail"]
        arguments = ("-m", "services", "run", "mailings", "--metrics-port", "0")
        settings = {"RINGBACK_DATABASE_URL": database_url}
        with running(tmp_path, amqp_url, settings, arguments) as restarted:
            await restarted.ready()
            repeated = await import_all(call)
    assert repeated.status == 200, repeated.text
    assert repeated.json["updated"] >= 1_000
    assert repeated.json["created"] + repeated.json["updated"] == 6_000
    assert repeated.json["failed"] == 0
