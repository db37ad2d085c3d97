"""Every operation of the HTTP interface, declared once: its route, its form, its examples."""

from collections.abc import Sequence
from typing import Final

from aiohttp import web

from services.gateway.callbacks import Callbacks
from shared.http.openapi import Operation

OPERATIONS: Final = tuple(
    Operation(id=i, method=m, path=p, tag="callbacks", summary=i, answers={})
    for i, m, p in (
        ("create_callback", "post", "/v1/callbacks"),
        ("add_callback", "post", "/v1/add"),
        ("create_callbacks", "post", "/v1/callbacks/batch"),
        ("retry_callbacks", "post", "/v1/callbacks/retry"),
        ("list_callbacks", "get", "/v1/callbacks"),
        ("get_callback", "get", "/v1/callbacks/{id}"),
        ("reschedule_callback", "patch", "/v1/callbacks/{id}"),
        ("cancel_callback", "delete", "/v1/callbacks/{id}"),
        ("list_group", "get", "/v1/groups/{group_key}/callbacks"),
        ("cancel_group", "delete", "/v1/groups/{group_key}/callbacks"),
        ("get_event", "get", "/v1/groups/{group_key}/callbacks/{event_key}"),
        ("reschedule_event", "patch", "/v1/groups/{group_key}/callbacks/{event_key}"),
        ("cancel_event", "delete", "/v1/groups/{group_key}/callbacks/{event_key}"),
    )
)


def routes(callbacks: Callbacks) -> Sequence[web.RouteDef]:
    """The operations with their handlers, as aiohttp takes them."""
    handlers = {
        "create_callback": callbacks.create,
        "add_callback": callbacks.create,
        "create_callbacks": callbacks.create_batch,
        "retry_callbacks": callbacks.retry,
        "list_callbacks": callbacks.list,
        "get_callback": callbacks.get,
        "reschedule_callback": callbacks.reschedule,
        "cancel_callback": callbacks.cancel,
        "list_group": callbacks.list,
        "cancel_group": callbacks.cancel,
        "get_event": callbacks.get,
        "reschedule_event": callbacks.reschedule,
        "cancel_event": callbacks.cancel,
    }
    return [web.route(op.method.upper(), op.path, handlers[op.id]) for op in OPERATIONS]
