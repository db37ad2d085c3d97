"""Ingestion as a process, with a real broker and database."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.ingestion.app import SCHEMA
from shared.postgres.migrations import migrate
from tests.fakes.command import ringback
from tests.fakes.ingesting import (
    KNOWN_EVENTS,
    RUN_INGESTION,
    IngestionClient,
    ingestion_client,
    signed_up,
)
from tests.fakes.service import Service, running
from tests.fakes.waiting import until

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
RULES = """
[broken]
from_service = "shop"
event = "paid"
[[broken.user_event]]
user_id = "{{ details.customer }}"
type = "paid"
event = {}
"""


@pytest.fixture(scope="module")
def service(
    shared_amqp_url: str, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    asyncio.run(migrate(database_url, SCHEMA))
    directory = tmp_path_factory.mktemp("ingestion")
    (directory / "rules.toml").write_text(RULES)
    settings = {"RINGBACK_DATABASE_URL": database_url, "RINGBACK_RULES_FILE": "rules.toml"}
    with running(directory, shared_amqp_url, settings, RUN_INGESTION) as started:
        asyncio.run(started.ready())
        yield started


@pytest.fixture
async def client(service: Service, shared_amqp_url: str) -> AsyncIterator[IngestionClient]:
    assert not service.exited(), service.output
    async with ingestion_client(shared_amqp_url) as client:
        yield client


async def wait_for_count(service: Service, outcome: str, more_than: float) -> None:
    async def more() -> bool:
        return await service.metric("ringback_events_total", outcome=outcome) > more_than

    await until(more)


@pytest.mark.parametrize("event", KNOWN_EVENTS, ids=lambda event: event["event"])
async def test_e1_e2_every_known_event_publishes_its_posting(
    client: IngestionClient, event: dict[str, Any]
) -> None:
    body = signed_up(**event)
    await client.send(body, headers={"traceparent": TRACE})

    message = await client.posting(body["event_id"])

    posting = json.loads(message.body)
    name = "welcome" if event["from_service"] == "auth" else event["event"]
    assert posting["template"] == f"email/{name}.md"
    assert posting["delivery_type"] == ["email"]
    assert (message.type, message.content_type) == ("Posting", "application/json")
    assert message.delivery_mode == 2
    assert message.app_id == "ringback"
    assert message.headers["traceparent"] == TRACE
    assert message.headers["x-ringback-id"] != message.message_id
    assert message.timestamp


@pytest.mark.parametrize("identified_by", ["event_id", "message_id", "content"])
async def test_e3_a_duplicate_event_has_no_effect(
    client: IngestionClient, service: Service, identified_by: str
) -> None:
    body = signed_up()
    event_id = body["event_id"]
    if identified_by != "event_id":
        del body["event_id"]
        body["details"] = body["details"] | {"username": event_id}
    ids = {"message_id": f"m-{event_id}"} if identified_by == "message_id" else {}
    before = await service.metric("ringback_events_total", outcome="duplicate")
    for _ in range(3):
        if identified_by == "content":
            await client.send_without_message_id(body)
        else:
            await client.send(body, **ids)
    await wait_for_count(service, "duplicate", before + 1)
    marker = signed_up()
    await client.send(marker)
    await client.posting(marker["event_id"])

    postings = [each for each in client.postings if event_id in each.body.decode()]

    assert len(postings) == 1


async def test_e3_a_stale_event_is_counted_and_has_no_effect(
    client: IngestionClient, service: Service
) -> None:
    now = datetime.now(UTC)
    old = [
        (signed_up(expires_at=(now - timedelta(seconds=1)).isoformat()), {}),
        (signed_up(occurred_at=(now - timedelta(days=2)).isoformat()), {}),
        (signed_up(), {"timestamp": now - timedelta(days=2)}),
    ]
    before = await service.metric("ringback_events_total", outcome="stale")
    for body, properties in old:
        await client.send(body, **properties)
    await wait_for_count(service, "stale", before + 2)
    recent = signed_up(occurred_at=now.isoformat())
    await client.send(
        recent, timestamp=now - timedelta(days=2)
    )  # the event's own time has precedence
    await client.posting(recent["event_id"])

    assert not [each for body, _ in old for each in client.postings_of(body["event_id"])]
    assert await client.dead_letters() == 0


@pytest.mark.parametrize(
    ("body", "properties", "reason"),
    [
        (b"", {}, "EOF"),
        (b"\xff\xfe", {}, "Invalid JSON"),
        (b'{"from_service": "a", "event": "b", "details": {"x": NaN}}', {}, "details"),
        (b'{"from_service": "a", "event": "b", "details": {"x": 1e999999}}', {}, "details"),
        (b'{"from_service": "a", "event": "b", "details": {"x": "\\u0000"}}', {}, "details"),
        (b'{"from_service": "a", "event": "b", "details": {"x": "\\ud800"}}', {}, "Invalid JSON"),
        (b'{"details": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", {}, "recursion"),
        (b'{"from_service": "a", "event": "b", "details": "' + b"x" * 300_000 + b'"}', {}, "bytes"),
        (json.dumps(signed_up(colour="red")).encode(), {}, "colour: Extra inputs"),
        (json.dumps(signed_up()).encode(), {"type": "Evnt"}, "type is 'Evnt'"),
        (json.dumps(signed_up()).encode(), {"content_type": "text/plain"}, "content_type"),
        (json.dumps(signed_up()).encode(), {"content_encoding": "gzip"}, "content_encoding"),
    ],
    ids=range(12),
)
async def test_row_26_an_invalid_event_is_dead_lettered_at_once_with_its_reason(
    client: IngestionClient, service: Service, body: bytes, properties: dict[str, Any], reason: str
) -> None:
    before = await service.metric("ringback_events_total", outcome="invalid")
    await client.send(body, **properties)

    dead_letter = await client.dead_letter()

    assert dead_letter.body == body
    assert reason in str(dead_letter.headers["x-ringback-reason"])
    await wait_for_count(service, "invalid", before)


async def test_e1_an_unknown_event_is_dead_lettered_and_counted(
    client: IngestionClient, service: Service
) -> None:
    before = await service.metric("ringback_events_total", outcome="unknown")
    await client.send(signed_up(event="user_left"))

    dead_letter = await client.dead_letter()

    expected = "no rule matches the event 'user_left' of 'auth'"
    assert dead_letter.headers["x-ringback-reason"] == expected
    await wait_for_count(service, "unknown", before)


async def test_e2_an_event_whose_rule_fails_is_dead_lettered_with_rule_and_reason(
    client: IngestionClient, service: Service
) -> None:
    before = await service.metric("ringback_events_total", outcome="failed")
    await client.send(signed_up(from_service="shop", event="paid"))

    dead_letter = await client.dead_letter()

    expected = "rule broken, user_event.0: user_id: the field 'customer' does not exist"
    assert dead_letter.headers["x-ringback-reason"] == expected
    await wait_for_count(service, "failed", before)


async def test_e1_ringback_send_publishes_events(
    client: IngestionClient, shared_amqp_url: str
) -> None:
    body = signed_up()
    output = await ringback("send", "Event", amqp_url=shared_amqp_url, stdin=json.dumps(body))
    assert (output.code, output.out) == (0, body["event_id"] + "\n"), output.err
    assert await client.posting(body["event_id"])


async def test_e2_the_command_line_checks_rules_and_applies_them_to_an_event(
    tmp_path: Path,
) -> None:
    file, event = tmp_path / "rules.toml", tmp_path / "event.json"
    event.write_text(json.dumps(signed_up(event_id="e-1")))
    file.write_text("[r]\nfrom_service = 's'\nevnt = 'e'\n")
    wrong = await ringback("rules", "check", str(file), amqp_url=None)
    assert wrong.code == 1
    assert f"{file}: r.event: Field required" in wrong.err
    assert f"{file}: r.evnt: Extra inputs are not permitted" in wrong.err
    file.write_text(RULES)
    valid = await ringback("rules", "check", str(file), "--json", amqp_url=None)
    assert (valid.code, valid.json_lines[0]["errors"]) == (0, [])
    assert valid.json_lines[0]["rules"][-1]["commands"] == ["user_event.0"]

    result = await ringback("rules", "try", str(file), str(event), "--json", amqp_url=None)

    assert result.code == 0, result.err
    (shown,) = result.json_lines
    assert (shown["id"], shown["outcome"]) == ("e-1", "accepted")
    (command,) = shown["commands"]
    assert (command["type"], command["exchange"]) == ("Posting", "postings")
    assert command["body"]["from_event"] == "e-1"
    event.write_text(json.dumps(signed_up(from_service="shop", event="paid")))
    dead = await ringback("rules", "try", str(file), str(event), amqp_url=None)
    assert dead.code == 1
    assert (
        "dead-lettered: rule broken, user_event.0: user_id: the field 'customer' does not exist"
        in dead.err
    )


async def test_e2_invalid_rules_prevent_the_start_and_every_fault_is_reported(
    tmp_path: Path, shared_amqp_url: str, database_url: str
) -> None:
    (tmp_path / "rules.toml").write_text("x = 1\n[r]\nfrom_service = 's'\n")
    settings = {"RINGBACK_DATABASE_URL": database_url, "RINGBACK_RULES_FILE": "rules.toml"}
    with running(tmp_path, shared_amqp_url, settings, RUN_INGESTION) as service:
        assert await service.exit_code() == 2
        assert "rules.toml: x: must be a table" in service.output
        assert "rules.toml: r.event: Field required" in service.output
