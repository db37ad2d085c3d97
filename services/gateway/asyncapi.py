"""AsyncAPI 3: every message that programs may publish or listen to, from models and topology."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from shared.contracts.callback import SEND_CALLBACK, SendCallback
from shared.contracts.facts import FACTS, Fact
from shared.contracts.requests import Failure
from shared.contracts.schedule_requests import (
    CallbackPage,
    CallbackStatus,
    Cancelled,
    CancelledGroup,
    CreateCallback,
    CreateCallbacks,
    Created,
    CreatedBatch,
    GetCallback,
    ListCallbacks,
    Operation,
    Pong,
    Rescheduled,
    Retried,
    RetryCallbacks,
)
from shared.contracts.schedules import (
    CANCEL_CALLBACK,
    RESCHEDULE_CALLBACK,
    SCHEDULE_CALLBACK,
    CancelCallback,
    RescheduleCallback,
    ScheduleCallback,
)
from shared.topology import (
    CALLBACKS,
    CANCEL,
    OUTCOMES,
    RESCHEDULE,
    SCHEDULE,
    SCHEDULER_REQUESTS,
    SCHEDULES,
    Exchange,
    Queue,
    Topology,
)
from shared.version import VERSION

ASYNCAPI: Final = "3.0.0"
JSON: Final = "application/json"
BINDING: Final = "0.3.0"  # of the AMQP bindings' own specification
REPLIES: Final = "replies"

# What may be published on the exchange `schedules`: routing key, type, model.
_SCHEDULES: Final[Sequence[tuple[str, str, type[BaseModel]]]] = (
    (SCHEDULE, SCHEDULE_CALLBACK, ScheduleCallback),
    (CANCEL, CANCEL_CALLBACK, CancelCallback),
    (RESCHEDULE, RESCHEDULE_CALLBACK, RescheduleCallback),
)
# What may be asked of the scheduler: operation, body, the values it may answer with.
_REQUESTS: Final[Sequence[tuple[Operation, type[BaseModel] | None, Sequence[type[BaseModel]]]]] = (
    (Operation.CREATE, CreateCallback, (Created,)),
    (Operation.CREATE_BATCH, CreateCallbacks, (CreatedBatch,)),
    (Operation.GET, GetCallback, (CallbackStatus,)),
    (Operation.LIST, ListCallbacks, (CallbackPage,)),
    (Operation.RESCHEDULE, RescheduleCallback, (Rescheduled,)),
    (Operation.CANCEL, CancelCallback, (Cancelled, CancelledGroup)),
    (Operation.RETRY, RetryCallbacks, (Retried,)),
    (Operation.PING, None, (Pong,)),
)
_FACTS: Final[tuple[type[BaseModel], ...]] = get_args(get_args(Fact)[0])


def asyncapi(topology: Topology) -> dict[str, Any]:
    """The AsyncAPI document of these exchanges and queues."""
    exchanges = {exchange.name: exchange for exchange in topology.exchanges}
    queues = {queue.name: queue for queue in topology.queues}
    schemas = _Schemas()
    channels: dict[str, Any] = {
        CALLBACKS: _channel(
            CALLBACKS,
            "Callbacks to deliver at once. Published on the default exchange.",
            _queue(queues[CALLBACKS]),
            {SEND_CALLBACK: _message(SEND_CALLBACK, schemas.of(SendCallback))},
        )
    }
    operations: dict[str, Any] = {
        "receiveSendCallback": _operation("receive", CALLBACKS, SEND_CALLBACK)
    }
    for key, name, order in _SCHEDULES:
        channel = f"{SCHEDULES}.{key}"
        channels[channel] = _channel(
            key,
            f"{name} on the exchange {SCHEDULES}.",
            _routed(exchanges[SCHEDULES]),
            {name: _message(name, schemas.of(order), headers=_TICKET)},
        )
        operations[f"receive{name}"] = _operation("receive", channel, name)
    for model in _FACTS:
        fact = model.model_fields["type"].default
        channels[fact] = _channel(
            fact,
            f"What happened, in batches, on the exchange {OUTCOMES}. Where a service of Ringback"
            " had the callback sent, the service's name follows in the routing key.",
            _routed(exchanges[OUTCOMES]),
            {model.__name__: _message(FACTS, _batch(schemas.of(model)))},
        )
        operations[f"send{model.__name__}"] = _operation("send", fact, model.__name__)
    _add_requests(channels, operations, queues[SCHEDULER_REQUESTS], schemas)
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


def _add_requests(
    channels: dict[str, Any], operations: dict[str, Any], queue: Queue, schemas: "_Schemas"
) -> None:
    """Requests and their replies, over AMQP's direct reply-to."""
    failure = schemas.of(Failure)
    requests: dict[str, Any] = {}
    replies: dict[str, Any] = {}
    for operation, body, values in _REQUESTS:
        reply = f"{operation}Reply"
        payload = {"type": "object"} if body is None else schemas.of(body)
        requests[operation] = _message(operation, payload, headers=_CLIENT_ID)
        ok = [_wrapped("ok", schemas.of(value)) for value in values]
        replies[reply] = _message(reply, {"oneOf": [*ok, _wrapped("error", failure)]})
        operations[f"answer{operation}"] = _operation("receive", queue.name, operation) | {
            "reply": {
                "address": {"location": "$message.header#/reply_to"},
                "channel": {"$ref": f"#/channels/{REPLIES}"},
                "messages": [{"$ref": f"#/channels/{REPLIES}/messages/{reply}"}],
            }
        }
    channels[queue.name] = _channel(
        queue.name,
        "What can be asked of the scheduler; the gateway does. `expiration` is the asker's"
        " patience, `reply_to` amq.rabbitmq.reply-to, `correlation_id` comes back.",
        _queue(queue),
        requests,
    )
    channels[REPLIES] = {
        "address": None,
        "description": "The answers, to whatever `reply_to` the request names.",
        "messages": replies,
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


_TICKET: Final = {
    "x-service-ticket": {
        "type": "string",
        "description": "A service ticket that says which client sends this; left out: anonymous.",
    }
}
_CLIENT_ID: Final = {
    "x-ringback-client-id": {
        "type": "string",
        "description": "Whom it is asked for, from a verified ticket; left out: anonymous.",
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
    address: str, description: str, binding: Mapping[str, Any], messages: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "address": address,
        "description": description,
        "messages": dict(messages),
        "bindings": {"amqp": dict(binding) | {"bindingVersion": BINDING}},
    }


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
