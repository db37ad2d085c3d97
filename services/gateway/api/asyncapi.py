"""AsyncAPI 3: every message that programs may publish or listen to, from models and topology."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from services.gateway.api import messages as table
from services.gateway.api.messages import Asked
from shared.contracts.facts import FACTS
from shared.contracts.requests import Failure
from shared.topology import OUTCOMES, Exchange, Queue, Topology
from shared.version import VERSION

ASYNCAPI: Final = "3.0.0"
JSON: Final = "application/json"
BINDING: Final = "0.3.0"  # of the AMQP bindings' own specification
REPLIES: Final = "replies"


def asyncapi(topology: Topology) -> dict[str, Any]:
    """The AsyncAPI document of these exchanges and queues."""
    exchanges = {exchange.name: exchange for exchange in topology.exchanges}
    queues = {queue.name: queue for queue in topology.queues}
    schemas = _Schemas()
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for direct in table.DIRECT:
        channels[direct.queue] = _channel(
            direct.queue,
            f"{direct.text} Published on the default exchange.",
            _queue(queues[direct.queue]),
            {direct.name: _message(direct.name, schemas.of(direct.model))},
        )
        operations[f"receive{direct.name}"] = _operation("receive", direct.queue, direct.name)
    for routed in table.ROUTED:
        channel = f"{routed.exchange}.{routed.name if routed.parameters else routed.routing_key}"
        channels[channel] = _channel(
            routed.routing_key,
            f"{routed.name} on the exchange {routed.exchange}.",
            _routed(exchanges[routed.exchange]),
            {routed.name: _message(routed.name, schemas.of(routed.model), headers=routed.headers)},
            parameters=routed.parameters,
        )
        operations[f"receive{routed.name}"] = _operation("receive", channel, routed.name)
    for kind, model in table.FACTS.items():
        fact = kind.title().translate(_JOINED)  # callback.given_back: CallbackGivenBack
        channels[kind] = _channel(
            kind,
            f"What happened, in batches, on the exchange {OUTCOMES}."
            + (_OWNED if "owner" in model.model_fields else ""),
            _routed(exchanges[OUTCOMES]),
            {fact: _message(FACTS, _batch(schemas.of(model)))},
        )
        operations[f"send{fact}"] = _operation("send", kind, fact)
    replies: dict[str, Any] = {}
    for queue, (who, asked) in table.REQUESTS.items():
        channels[queue] = _channel(
            queue,
            f"What can be asked of {who}; the gateway does. `expiration` is the asker's"
            " patience, `reply_to` amq.rabbitmq.reply-to, `correlation_id` comes back.",
            _queue(queues[queue]),
            _requests(asked, schemas),
        )
        replies |= _replies(asked, schemas)
        for each in asked:
            operations[f"answer{each.operation}"] = _answered(queue, each.operation)
    channels[REPLIES] = {
        "address": None,
        "description": "The answers, to whatever `reply_to` the request names.",
        "messages": replies,
    }
    return {
        "asyncapi": ASYNCAPI,
        "info": {
            "title": "Ringback",
            "version": VERSION,
            "description": "Messages over RabbitMQ. Every message has `content_type`"
            " application/json, the `type` named here, and is persistent; `message_id` is its"
            " idempotency key. `traceparent` is kept and passed on.",
        },
        "defaultContentType": JSON,
        "channels": channels,
        "operations": operations,
        "components": {"schemas": schemas.definitions()},
    }


class _Schemas:
    """The models used so far, each described once."""

    def __init__(self) -> None:
        self._models: list[type[BaseModel]] = []

    def of(self, model: type[BaseModel]) -> dict[str, str]:
        """A reference to this model."""
        if model not in self._models:
            self._models.append(model)
        return {"$ref": f"#/components/schemas/{model.__name__}"}

    def definitions(self) -> dict[str, Any]:
        """All of them, with the models that they are made of."""
        _, schema = models_json_schema(
            [(model, "validation") for model in self._models],
            ref_template="#/components/schemas/{model}",
        )
        definitions: dict[str, Any] = schema["$defs"]
        return definitions


_OWNED: Final = (
    " Where a service of Ringback had the callback sent, the service's name follows in the routing"
    " key."
)
_JOINED: Final = str.maketrans("", "", "._")
_CLIENT_ID: Final = {
    "x-ringback-client-id": {
        "type": "string",
        "description": "Whom it is asked for, from a verified ticket; left out: anonymous.",
    }
}


def _requests(asked: Sequence[Asked], schemas: _Schemas) -> dict[str, Any]:
    return {
        each.operation: _message(
            each.operation,
            {"type": "object"} if each.body is None else schemas.of(each.body),
            headers=_CLIENT_ID,
        )
        for each in asked
    }


def _replies(asked: Sequence[Asked], schemas: _Schemas) -> dict[str, Any]:
    """The answers, over AMQP's direct reply-to."""
    failure = _wrapped("error", schemas.of(Failure))
    return {
        f"{each.operation}Reply": _message(
            f"{each.operation}Reply",
            {"oneOf": [*(_wrapped("ok", schemas.of(value)) for value in each.values), failure]},
        )
        for each in asked
    }


def _answered(queue: str, operation: str) -> dict[str, Any]:
    return _operation("receive", queue, operation) | {
        "reply": {
            "address": {"location": "$message.header#/reply_to"},
            "channel": {"$ref": f"#/channels/{REPLIES}"},
            "messages": [{"$ref": f"#/channels/{REPLIES}/messages/{operation}Reply"}],
        }
    }


def _message(
    name: str, payload: Mapping[str, Any], *, headers: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    message: dict[str, Any] = {
        "name": name,
        "contentType": JSON,
        "payload": dict(payload),
        "bindings": {"amqp": {"messageType": name, "bindingVersion": BINDING}},
    }
    if headers:
        message["headers"] = {"type": "object", "properties": dict(headers)}
    return message


def _batch(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"facts": {"type": "array", "items": dict(schema)}},
        "required": ["facts"],
    }


def _wrapped(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: dict(schema)}, "required": [name]}


def _channel(
    address: str,
    description: str,
    binding: Mapping[str, Any],
    messages: Mapping[str, Any],
    *,
    parameters: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    channel: dict[str, Any] = {
        "address": address,
        "description": description,
        "messages": dict(messages),
        "bindings": {"amqp": dict(binding) | {"bindingVersion": BINDING}},
    }
    if parameters:
        channel["parameters"] = {name: {"description": text} for name, text in parameters.items()}
    return channel


def _queue(queue: Queue) -> dict[str, Any]:
    described = {"name": queue.name, "durable": True, "exclusive": False, "autoDelete": False}
    return {"is": "queue", "queue": described}


def _routed(exchange: Exchange) -> dict[str, Any]:
    described = {"name": exchange.name, "type": exchange.type, "durable": True, "autoDelete": False}
    return {"is": "routingKey", "exchange": described}


def _operation(action: str, channel: str, message: str) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"}],
    }
