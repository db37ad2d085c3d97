"""The AsyncAPI document holds together, and says what topology and models say.

There is no Python package with the schema of AsyncAPI 3, so what its specification requires of the
parts that are used is checked here.
"""

import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from services.gateway.api.asyncapi import asyncapi
from shared.contracts import posting_requests, schedule_requests
from shared.topology import topology

TOPOLOGY = topology()
DOCUMENT = asyncapi(TOPOLOGY)
MESSAGES = [
    (channel, name, message)
    for channel, described in DOCUMENT["channels"].items()
    for name, message in described["messages"].items()
]


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def resolved(reference: str) -> Any:
    found: Any = DOCUMENT
    start, *path = reference.split("/")
    assert start == "#"
    for name in path:
        found = found[name]
    return found


def test_every_reference_leads_somewhere() -> None:
    every = set(references(DOCUMENT))
    assert len(every) > 30
    assert all(isinstance(resolved(reference), dict) for reference in every)


def test_it_has_what_asyncapi_3_requires() -> None:
    allowed = {"asyncapi", "info", "defaultContentType", "channels", "operations", "components"}
    assert DOCUMENT.keys() <= allowed
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert DOCUMENT["info"].keys() >= {"title", "version"}
    for channel in DOCUMENT["channels"].values():
        known = {"address", "description", "messages", "bindings", "parameters"}
        assert channel.keys() <= known
        assert channel["address"] is None or channel["address"]
        named = set(re.findall(r"{(\w+)}", channel["address"] or ""))
        assert named == set(channel.get("parameters", ()))
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] in ("send", "receive")
        assert operation.keys() <= {"action", "channel", "messages", "reply"}
        # The specification: an operation's messages are those of its own channel.
        within = operation["channel"]["$ref"] + "/messages/"
        assert all(message["$ref"].startswith(within) for message in operation["messages"])


@pytest.mark.parametrize(("channel", "name", "message"), MESSAGES)
def test_every_message_has_a_payload_that_is_a_schema(
    channel: str, name: str, message: Any
) -> None:
    assert message["contentType"] == "application/json", (channel, name)
    schema = message["payload"] | {"components": DOCUMENT["components"]}
    jsonschema.Draft7Validator.check_schema(schema)
    assert message["bindings"]["amqp"]["messageType"] == message["name"]


def test_channels_are_those_of_the_topology() -> None:
    exchanges = {exchange.name: exchange.type for exchange in TOPOLOGY.exchanges}
    queues = {queue.name for queue in TOPOLOGY.queues}
    bound = {(binding.exchange, binding.routing_key) for binding in TOPOLOGY.bindings}
    described = set()
    for channel in DOCUMENT["channels"].values():
        if channel["address"] is None:
            continue
        amqp = channel["bindings"]["amqp"]
        if amqp["is"] == "queue":
            assert amqp["queue"]["name"] == channel["address"]
            described.add(channel["address"])
        else:
            assert exchanges[amqp["exchange"]["name"]] == amqp["exchange"]["type"]
            described.add((amqp["exchange"]["name"], channel["address"]))
    commands = {"schedules", "postings", "user_events"}
    assert described >= {key for key in bound if key[0] in commands}
    heard = {key for key in bound if key[0] == "outcomes" and "*" not in key[1]}
    assert heard == {("outcomes", f"message.{what}") for what in ("sent", "failed", "expired")}
    assert described >= heard
    assert {name for name in described if isinstance(name, str)} <= queues


OPERATIONS = (*schedule_requests.Operation, *posting_requests.Operation)


def test_what_programs_may_send_and_hear_is_there() -> None:
    names = {message["name"] for _, _, message in MESSAGES}
    promised = {"SendCallback", "ScheduleCallback", "CancelCallback", "RescheduleCallback", "Facts"}
    promised |= {"Event", "Posting", "UserEvent", "SendEmail", "SendSms"}
    assert names >= promised | set(OPERATIONS)
    by_subject = {
        "callback": {"delivered", "attempt_failed", "dead", "given_back"},
        "schedule": {"notified", "failed", "cancelled", "retrying"},
        "message": {"sent", "attempt_failed", "failed", "expired"},
    }
    facts = {f"{about}.{what}" for about, each in by_subject.items() for what in each}
    told = {key for key, _, message in MESSAGES if message["name"] == "Facts"}
    assert told == facts


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_request_names_its_reply(operation: str) -> None:
    answered = DOCUMENT["operations"][f"answer{operation}"]
    [reply] = answered["reply"]["messages"]
    assert "oneOf" in resolved(reply["$ref"])["payload"]


def test_e1_an_events_routing_key_is_made_of_its_fields() -> None:
    channel = DOCUMENT["channels"]["events.Event"]
    assert channel["address"] == "{from_service}.{event}"
    assert channel["bindings"]["amqp"]["exchange"]["name"] == "events"


def test_an_order_that_the_models_take_keeps_the_document_too() -> None:
    message = DOCUMENT["channels"]["schedules.schedule"]["messages"]["ScheduleCallback"]
    schema = message["payload"] | {"components": DOCUMENT["components"]}
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate({"url": "https://example.com", "delay": 3, "context": {"a": [1]}})
    assert not validator.is_valid({"delay": 3})
    assert not validator.is_valid({"url": "https://example.com", "colour": "red"})
