"""The AsyncAPI document is consistent, and agrees with the topology and the models.

No Python package has the schema of AsyncAPI 3, so these tests check what its specification
requires of the parts that Ringback uses.
"""

import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from services.gateway.api.asyncapi import RPC_OPERATIONS, asyncapi
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


def test_every_reference_resolves() -> None:
    found = set(references(DOCUMENT))
    assert len(found) > 30
    assert all(isinstance(resolved(reference), dict) for reference in found)


def test_the_document_has_the_parts_that_asyncapi_3_requires() -> None:
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
def test_every_message_has_a_valid_payload_schema(channel: str, name: str, message: Any) -> None:
    assert message["contentType"] == "application/json", (channel, name)
    schema = message["payload"] | {"components": DOCUMENT["components"]}
    jsonschema.Draft7Validator.check_schema(schema)
    assert message["bindings"]["amqp"]["messageType"] == message["name"]


def test_channels_match_the_topology() -> None:
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
    commands = {"schedules", "postings"}
    assert described >= {key for key in bound if key[0] in commands}
    assert {name for name in described if isinstance(name, str)} <= queues


OPERATIONS = [operation.name for operation in RPC_OPERATIONS]


def test_every_message_that_programs_may_publish_or_consume_is_documented() -> None:
    names = {message["name"] for _, _, message in MESSAGES}
    promised = {"SendCallback", "ScheduleCallback", "CancelCallback", "RescheduleCallback", "Facts"}
    promised |= {"Event", "Posting", "UserEvent", "SendEmail", "SendSms"}
    assert names >= promised | set(OPERATIONS)
    by_subject = {
        "callback": {"delivered", "attempt_failed", "dead", "dispatch_failed", "replayed"},
        "schedule": {"notified", "failed", "cancelled", "retrying"}
        | {"created", "rescheduled", "dispatched"},
        "message": {"sent", "attempt_failed", "failed", "expired", "returned"},
        "endpoint": {"disabled"},
        "letter": {"dead", "redriven", "discarded"},
        "target": {"breaker_opened", "breaker_closed", "lane_full"},
    }
    facts = {f"{about}.{outcome}" for about, each in by_subject.items() for outcome in each}
    documented = {key for key, _, message in MESSAGES if message["name"] == "Facts"}
    assert documented == facts


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_request_names_its_response(operation: str) -> None:
    responder = DOCUMENT["operations"][f"respond{operation}"]
    [response] = responder["reply"]["messages"]
    assert "oneOf" in resolved(response["$ref"])["payload"]


def test_e1_the_routing_key_of_an_event_consists_of_its_fields() -> None:
    channel = DOCUMENT["channels"]["events.Event"]
    assert channel["address"] == "{from_service}.{event}"
    assert channel["bindings"]["amqp"]["exchange"]["name"] == "events"


def test_u3_the_routing_key_of_a_user_event_is_the_id_of_the_user() -> None:
    channel = DOCUMENT["channels"]["user_events.UserEvent"]
    assert channel["address"] == "{user_id}"
    assert channel["bindings"]["amqp"]["exchange"]["name"] == "user_events"


def test_a_command_is_valid_for_the_document_if_it_is_for_the_model() -> None:
    message = DOCUMENT["channels"]["schedules.schedule"]["messages"]["ScheduleCallback"]
    schema = message["payload"] | {"components": DOCUMENT["components"]}
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate({"url": "https://example.com", "delay": 3, "context": {"a": [1]}})
    assert not validator.is_valid({"delay": 3})
    assert not validator.is_valid({"url": "https://example.com", "colour": "red"})
