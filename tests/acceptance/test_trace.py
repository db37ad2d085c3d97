"""M14: the story of a mailing, a message and a recipient is in the logs of all services."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.command import ringback
from tests.fakes.delivering import settings
from tests.fakes.gateway import Caller
from tests.fakes.sandbox import running_sandbox
from tests.fakes.system import System, fresh_database, system
from tests.fakes.waiting import until

CANARY = "c4n4ry"
PHONES = [f"7916000000{n}" for n in range(3)]
# The ids that a request must carry, by the beginning of its route.
IDS = {"/v1/clients/{id}": "recipient_id", "/v1/mailings/{id}": "mailing_id"}


@pytest.fixture
def own_database_url(database_url: str) -> Iterator[str]:
    with fresh_database(database_url) as url:
        yield url


async def story(kind: str, id_: str, services: System) -> list[dict[str, Any]]:
    logs = [str(service.log) for service in services.values()]
    output = await ringback("trace", kind, id_, "--json", *logs, amqp_url=None)
    assert output.code == 0, output.err
    return output.json_lines


def happened(lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(line["service"], line["message"]) for line in lines]


async def sent_mailing(call: Caller) -> tuple[str, dict[str, Any]]:
    """Send a mailing to three clients; return its id and the message to the first client."""
    lines = "".join(f"{phone},{CANARY},Europe/Moscow\n" for phone in PHONES)
    imported = await call(
        "POST", "/v1/clients/import", raw=f"phone,tag,timezone\n{lines}", Content_Type="text/csv"
    )
    assert imported.json["created"] == len(PHONES), imported.text
    found = (await call("GET", f"/v1/clients?phone={PHONES[0]}")).json["items"]
    changed = await call("PATCH", f"/v1/clients/{found[0]['id']}", {"timezone": "Asia/Omsk"})
    assert changed.status == 200, changed.text
    now = datetime.now(UTC)
    created = await call(
        "POST",
        "/v1/mailings",
        {
            "text": f"Hello {CANARY}",
            "channel": "sms",
            "start_at": now.isoformat(),
            "end_at": (now + timedelta(hours=1)).isoformat(),
            "filter": {"tags": [CANARY]},
        },
    )
    assert created.status == 201, created.text
    path = f"/v1/mailings/{created.json['id']}"

    async def is_finished() -> bool:
        return bool((await call("GET", path)).json["status"] == "finished")

    await until(is_finished)
    messages = (await call("GET", f"{path}/messages")).json["items"]
    assert [each["status"] for each in messages] == ["sent"] * len(PHONES)
    [message] = [each for each in messages if each["client_id"] == found[0]["id"]]
    return created.json["id"], message


async def test_m14_logs_tell_the_story_of_a_mailing_a_message_and_a_recipient(
    amqp_url: str, own_database_url: str, tmp_path: Path
) -> None:
    async with running_sandbox() as sandbox:
        await sandbox.configure(
            "/api/sms/settings", behaviour={"kind": "fail", "status": 404}, times=1, per="to"
        )
        given = settings(sandbox, own_database_url)
        names = ("mailings", "delivery", "scheduler")
        with system(tmp_path, amqp_url, own_database_url, *names, **given) as services:
            await services.ready()
            async with services.calling() as call:
                mailing_id, message = await sent_mailing(call)
            # A mailing is finished in the database before it is logged.
            await until(lambda: services["mailings"].logged("mailing finished"))
            of_message = await story("message", message["id"], services)
            of_recipient = await story("recipient", message["client_id"], services)
            of_mailing = await story("mailing", mailing_id, services)
            output = "".join(service.output for service in services.values())
            requests = services["gateway"].logged("http request")

    attempts = [("delivery", "message attempt failed"), ("delivery", "message sent")]
    assert happened(of_message) == attempts
    ids = {"mailing_id": mailing_id, "recipient_id": message["client_id"]}
    assert all(ids.items() <= line.items() for line in of_message)

    assert happened(of_recipient) == [
        ("mailings", "clients changed by an import"),
        ("mailings", "client changed"),
        ("gateway", "http request"),
        *attempts,
    ]
    steps = Counter(happened(of_mailing))
    assert [steps[attempt] for attempt in attempts] == [len(PHONES)] * 2
    expected = [
        ("mailings", "mailing created"),
        ("mailings", "posting expanding"),
        ("mailings", "posting done"),
        ("mailings", "mailing finished"),
        ("gateway", "http request"),
    ]
    assert [step for step in expected if not steps[step]] == []

    [created] = [line for line in of_mailing if line["message"] == "mailing created"]
    assert created["status"] == "running"

    without = [
        line
        for line in requests
        for route, name in IDS.items()
        if line["route"].startswith(route) and name not in line
    ]
    assert (without, len(requests) > 3) == ([], True)
    assert [secret for secret in (CANARY, *PHONES) if secret in output] == []
