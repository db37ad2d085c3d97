"""The routes for many callbacks at a time: schedule a batch, and retry failed callbacks."""

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web
from pydantic_core import to_json

from services.gateway import examples
from services.gateway.parsing import IDEMPOTENCY_KEY, idempotency_key, invalid, json_body
from services.gateway.responses import json_response
from services.gateway.routes.callbacks import CREATED, FAILURES, NOT_FOUND, TAG
from services.gateway.routes.declaration import (
    BODY_FAILURES,
    Dependencies,
    Route,
    idempotency_header,
    ok,
)
from services.gateway.routes.resources import passed_on
from services.gateway.schemas import Batch, BatchResult
from shared.amqp.rpc import RequestContext
from shared.contracts.context import MAX_FIELD_ERRORS
from shared.contracts.requests import Failure, FieldError
from shared.contracts.schedule_requests import (
    CREATE_CALLBACKS,
    RETRY_CALLBACKS,
    RetryCallbacks,
    RetryResponse,
)
from shared.http.openapi import Body
from shared.http.service_client import problem_of

_REJECTED: Final = {
    "error": {
        "type": "urn:ringback:problem:invalid",
        "title": "Unprocessable Entity",
        "status": 422,
        "detail": "url: Field required",
        "errors": [{"field": "url", "message": "Field required"}],
    }
}


def routes(example_url: str) -> tuple[Route, ...]:
    """Return the routes; the callbacks in the examples call `example_url`."""
    return (
        Route(
            method="POST",
            path="/v1/callbacks/batch",
            operation_id="create_callbacks",
            handler=create_callbacks,
            tag=TAG,
            summary="Schedule up to 1,000 callbacks",
            description="Each callback is accepted or rejected on its own. The body may also be a"
            " plain list.",
            parameters=(
                idempotency_header(
                    "A repeat with the same key and body schedules only those callbacks that the"
                    " first request did not."
                ),
            ),
            body=Body(Batch, {"Two": examples.batch(example_url)}),
            responses={
                200: ok(
                    "A result for each callback, in the same order.",
                    BatchResult,
                    {"items": [CREATED, _REJECTED]},
                ),
                **BODY_FAILURES,
                **FAILURES,
            },
        ),
        Route(
            method="POST",
            path="/v1/callbacks/retry",
            operation_id="retry_callbacks",
            handler=passed_on(RETRY_CALLBACKS),
            tag=TAG,
            summary="Retry failed callbacks",
            description="Retries one callback by `id`, a group, those that failed in a period, or"
            " with `all` every failed callback of the client.",
            body=Body(
                RetryCallbacks,
                {
                    "Only list them": {"group_key": "user-7", "dry_run": True},
                    "A group": {"group_key": "user-7"},
                },
            ),
            responses={
                200: ok(
                    "The retried callbacks.", RetryResponse, {"count": 1, "ids": [examples.ID]}
                ),
                **BODY_FAILURES,
                **NOT_FOUND,
                **FAILURES,
            },
        ),
    )


async def create_callbacks(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Schedule a batch of callbacks; each has its own result."""
    key = idempotency_key(request)
    body, content = await json_body(request, deps.settings.max_batch_bytes)
    if isinstance(content, list):
        content, body = {"callbacks": content}, b'{"callbacks":%b}' % body
    if isinstance(content, dict) and "idempotency_key" in content:
        message = f"send it as the header {IDEMPOTENCY_KEY}"
        raise invalid([FieldError(field="idempotency_key", message=message)])
    if isinstance(content, dict) and len(content) > MAX_FIELD_ERRORS:
        raise invalid([FieldError(field="", message=f"has {len(content)} fields, not one")])
    if key is not None and isinstance(content, dict):
        body = to_json(content | {"idempotency_key": key})
    created = await deps.services.request(CREATE_CALLBACKS, body, context)
    return json_response({"items": [_batch_item(item) for item in created["items"]]})


def _batch_item(item: Mapping[str, Any]) -> Mapping[str, Any]:
    if "error" not in item:
        return item
    return {"error": problem_of(Failure.model_validate(item["error"], extra="ignore")).body()}
