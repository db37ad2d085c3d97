"""M1: `ringback clients`, as a client of the gateway."""

import json
from pathlib import Path

import pytest

from tests.fakes.command import Output, ringback
from tests.fakes.gateway import base_url, ticket
from tests.fakes.system import System

HEADER = "phone,timezone,tag\n"


async def run(services: System, caller: str, *arguments: str) -> Output:
    url = await base_url(services["gateway"])
    return await ringback(
        "clients", *arguments, "--url", url, amqp_url=None, RINGBACK_TICKET=ticket(caller)
    )


async def test_m1_import_reports_the_lines_and_list_finds_them(
    services: System, tmp_path: Path
) -> None:
    file = tmp_path / "clients.csv"
    file.write_text(HEADER + "79160000001,UTC,vip\n7916,UTC,\n79030000002,Asia/Omsk,\n")
    imported = await run(services, "shop", "import", str(file))
    assert imported.code == 1
    assert imported.out == "line 3: phone: is not a phone number such as 79161234567\n"
    assert imported.err == "2 created, 0 updated, 1 failed\n"
    listed = await run(services, "shop", "list")
    assert listed.code == 0
    assert [line.split()[1:] for line in listed.out.splitlines()] == [
        ["PHONE", "OPERATOR", "TAG", "TIME", "ZONE"],
        ["79160000001", "916", "vip", "UTC"],
        ["79030000002", "903", "Asia/Omsk"],
    ]
    found = await run(services, "shop", "list", "--phone", "7903", "--json")
    assert json.loads(found.out)["timezone"] == "Asia/Omsk"
    assert (await run(services, "bank", "list")).out == ""


@pytest.mark.parametrize("name", ["clients.jsonl", "clients.NDJSON"])
async def test_m1_import_knows_json_lines_by_their_name(
    services: System, tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    file.write_text('{"phone": "79160000001", "timezone": "UTC"}\n')
    imported = await run(services, name, "import", str(file), "--json")
    assert imported.code == 0, imported.err
    assert json.loads(imported.out) == {"created": 1, "updated": 0, "failed": 0, "errors": []}


async def test_m1_import_shows_at_most_a_thousand_lines_and_says_how_many_follow(
    services: System, tmp_path: Path
) -> None:
    file = tmp_path / "clients.csv"
    file.write_text(HEADER + "1,UTC,\n" * 1500)
    imported = await run(services, "wrong", "import", str(file))
    assert imported.code == 1
    lines = imported.out.splitlines()
    assert len(lines) == 1001
    assert lines[-1] == "... and 500 more lines"


# The gateway responds to a long file before it has read it.
@pytest.mark.parametrize("lines", [1, 1_000_000])
async def test_m1_import_explains_a_wrong_header(
    services: System, tmp_path: Path, lines: int
) -> None:
    file = tmp_path / "clients.csv"
    file.write_text("phone,zone\n" + "79160000001,UTC\n" * lines)
    imported = await run(services, "header", "import", str(file))
    assert imported.code == 1
    assert "header: unknown column 'zone'; known: phone, operator_code, tag" in imported.err
