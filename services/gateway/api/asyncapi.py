"""The AsyncAPI 3 document: every message that programs may publish, consume or request."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from shared.contracts.client_requests import CLIENT_OPERATIONS
from shared.contracts.delivery_requests import DELIVERY_OPERATIONS
from shared.contracts.endpoint_facts import EndpointDisabled
from shared.contracts.endpoint_requests import ENDPOINT_MESSAGE_OPERATIONS, ENDPOINT_OPERATIONS
from shared.contracts.facts import FACTS, Fact
from shared.contracts.journal_dead import DEAD_OPERATIONS, JOB_OPERATIONS
from shared.contracts.journal_facts import JournalOnlyFact
from shared.contracts.journal_figures import OVERVIEW_OPERATIONS, TARGET_OPERATIONS
from shared.contracts.journal_reads import ATTEMPT_OPERATIONS, AUDIT_OPERATIONS
from shared.contracts.journal_replays import (
    BULK_REPLAY_OPERATIONS,
    PAUSE_OPERATIONS,
    REPLAY_OPERATIONS,
)
from shared.contracts.mailing_requests import CAMPAIGN_OPERATIONS
from shared.contracts.mailing_statistics import REPORT_OPERATIONS, STATISTICS_OPERATIONS
from shared.contracts.message_facts import MessageFact
from shared.contracts.message_types import MESSAGE_TYPES, MessageType
from shared.contracts.polls import POLL_OPERATIONS
from shared.contracts.posting_requests import MAILINGS_OPERATIONS
from shared.contracts.registrations import REGISTRATION_OPERATIONS
from shared.contracts.requests import Failure, RpcOperation
from shared.contracts.schedule_facts import Kind, ScheduleFact, ScheduleStep
from shared.contracts.schedule_requests import SCHEDULER_OPERATIONS
from shared.contracts.template_requests import TEMPLATE_OPERATIONS
from shared.contracts.users import USER_OPERATIONS
from shared.topology import OUTCOMES, Exchange, Queue, Topology
from shared.version import VERSION

ASYNCAPI: Final = "3.0.0"
JSON: Final = "application/json"
BINDING: Final = "0.3.0"  # the version of the AMQP bindings specification
REPLIES: Final = "replies"

RPC_OPERATIONS: Final[tuple[RpcOperation[Any], ...]] = (
    *SCHEDULER_OPERATIONS,
    *MAILINGS_OPERATIONS,
    *CLIENT_OPERATIONS,
    *STATISTICS_OPERATIONS,
    *REPORT_OPERATIONS,
    *CAMPAIGN_OPERATIONS,
    *TEMPLATE_OPERATIONS,
    *DELIVERY_OPERATIONS,
    *USER_OPERATIONS,
    *POLL_OPERATIONS,
    *REGISTRATION_OPERATIONS,
    *ENDPOINT_OPERATIONS,
    *ENDPOINT_MESSAGE_OPERATIONS,
    *ATTEMPT_OPERATIONS,
    *TARGET_OPERATIONS,
    *OVERVIEW_OPERATIONS,
    *AUDIT_OPERATIONS,
    *DEAD_OPERATIONS,
    *JOB_OPERATIONS,
    *REPLAY_OPERATIONS,
    *BULK_REPLAY_OPERATIONS,
    *PAUSE_OPERATIONS,
)


def _models_by_type(union: Any) -> dict[str, type[BaseModel]]:
    """Return the models of a discriminated union by their types."""
    models = get_args(get_args(union)[0])
    return {model.model_fields["type"].default: model for model in models}


_FACT_MODELS: Final[Mapping[str, type[BaseModel]]] = (
    _models_by_type(Fact)
    | dict.fromkeys(get_args(Kind), ScheduleFact)
    | _models_by_type(ScheduleStep)
    | _models_by_type(MessageFact)
    | {"endpoint.disabled": EndpointDisabled}
    | _models_by_type(JournalOnlyFact)
)


def asyncapi(topology: Topology, ticket_header: str = "X-Service-Ticket") -> dict[str, Any]:
    """Return the AsyncAPI document of these exchanges and queues.

    Clients send their ticket in the header `ticket_header`.
    """
    exchanges = {exchange.name: exchange for exchange in topology.exchanges}
    queues = {queue.name: queue for queue in topology.queues}
    schemas = _Schemas()
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for published in MESSAGE_TYPES.values():
        name = _channel_name(published)
        channels[name] = _channel(
            published.routing_key,
            f"{published.name} on the {_exchange(published)}.",
            _routed(exchanges[published.exchange])
            if published.exchange
            else _queue(queues[published.routing_key]),
            {
                published.name: _message(
                    published.name,
                    schemas.of(published.model),
                    headers={ticket_header: _TICKET} if published.ticket else None,
                )
            },
            parameters=published.routing_fields,
        )
        operations[f"receive{published.name}"] = _operation("receive", name, published.name)
    for kind, model in _FACT_MODELS.items():
        fact = kind.title().translate(_JOINED)  # callback.dispatch_failed: CallbackDispatchFailed
        channels[kind] = _channel(
            kind,
            f"A batch of facts on the exchange {OUTCOMES}.",
            _routed(exchanges[OUTCOMES]),
            {fact: _message(FACTS, _batch(schemas.of(model)))},
        )
        operations[f"send{fact}"] = _operation("send", kind, fact)
    for operation in RPC_OPERATIONS:
        channel = channels.setdefault(
            operation.queue,
            _channel(
                operation.queue,
                f"Requests to {operation.service}. `expiration` is the timeout in milliseconds,"
                " `reply_to` is amq.rabbitmq.reply-to, and the response has the same"
                " `correlation_id`.",
                _queue(queues[operation.queue]),
                {},
            ),
        )
        channel["messages"][operation.name] = _message(
            operation.name, schemas.of(operation.request), headers=_CLIENT_ID
        )
        operations[f"respond{operation.name}"] = _responder(operation)
    channels[REPLIES] = {
        "address": None,
        "description": "Responses, to the `reply_to` of the request.",
        "messages": _replies(RPC_OPERATIONS, schemas),
    }
    return {
        "asyncapi": ASYNCAPI,
        "info": {
            "title": "Ringback",
            "version": VERSION,
            "description": "Messages over RabbitMQ. Every message has `content_type`"
            " application/json and the `type` named here, and is persistent. `message_id` is its"
            " idempotency key. `traceparent` is passed on.",
        },
        "defaultContentType": JSON,
        "channels": channels,
        "operations": operations,
        "components": {"schemas": schemas.definitions()},
    }


class _Schemas:
    """The schemas of all models that the document uses."""

    def __init__(self) -> None:
        self._models: list[type[BaseModel]] = []

    def of(self, model: type[BaseModel]) -> dict[str, str]:
        """Return a reference to the schema of this model."""
        if model not in self._models:
            self._models.append(model)
        return {"$ref": f"#/components/schemas/{model.__name__}"}

    def definitions(self) -> dict[str, Any]:
        """Return all schemas, with those of nested models."""
        _, schema = models_json_schema(
            [(model, "validation") for model in self._models],
            ref_template="#/components/schemas/{model}",
        )
        definitions: dict[str, Any] = schema["$defs"]
        return definitions


_JOINED: Final = str.maketrans("", "", "._")
_CLIENT_ID: Final = {
    "x-ringback-client-id": {
        "type": "string",
        "description": "The client id of a verified ticket. Without it, the client is anonymous.",
    }
}
_TICKET: Final = {
    "type": "string",
    "description": "A service ticket that names the client. Without it, the client is anonymous.",
}


def _channel_name(published: MessageType) -> str:
    key = published.name if published.routing_fields else published.routing_key
    return f"{published.exchange}.{key}" if published.exchange else key


def _exchange(published: MessageType) -> str:
    return f"exchange {published.exchange}" if published.exchange else "default exchange"


def _replies(operations: Iterable[RpcOperation[Any]], schemas: _Schemas) -> dict[str, Any]:
    """Return the response messages, by name."""
    failure = _wrapped("error", schemas.of(Failure))
    return {
        f"{operation.name}Reply": _message(
            f"{operation.name}Reply",
            {
                "oneOf": [
                    *(_wrapped("ok", schemas.of(model)) for model in operation.responses),
                    failure,
                ]
            },
        )
        for operation in operations
    }


def _responder(operation: RpcOperation[Any]) -> dict[str, Any]:
    return _operation("receive", operation.queue, operation.name) | {
        "reply": {
            "address": {"location": "$message.header#/reply_to"},
            "channel": {"$ref": f"#/channels/{REPLIES}"},
            "messages": [{"$ref": f"#/channels/{REPLIES}/messages/{operation.name}Reply"}],
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
