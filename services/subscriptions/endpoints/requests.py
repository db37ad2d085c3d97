"""The handlers of requests about endpoints. Each caller sees only its own endpoints."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from services.subscriptions.endpoints import domain
from services.subscriptions.endpoints.domain import Content, StoredEndpoint
from services.subscriptions.endpoints.messages import EndpointMessages, Replayed
from services.subscriptions.endpoints.store import (
    Endpoints,
    KeyUsedError,
    TooManyEndpointsError,
)
from shared.amqp.publisher import new_id
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.contracts.endpoint_requests import (
    CHANGE_ENDPOINT,
    CREATE_ENDPOINT,
    DELETE_ENDPOINT,
    GET_ENDPOINT,
    LIST_ENDPOINTS,
    LIST_REPLAYS,
    PAUSE_ENDPOINT,
    REPLAY_ENDPOINT,
    RESUME_ENDPOINT,
    ROTATE_SECRET,
    TEST_ENDPOINT,
    ChangeEndpoint,
    ControlEndpoint,
    CreateEndpoint,
    EndpointDeleted,
    EndpointPage,
    EndpointTested,
    GetEndpoint,
    ListEndpoints,
    ListReplays,
    ReplayEndpoint,
    ReplayPage,
    ReplayStarted,
    RotateSecret,
    SecretRotated,
)
from shared.contracts.endpoints import EndpointStatus
from shared.contracts.requests import Failure, FailureCode, FieldError, invalid
from shared.pagination import END, decode_cursor, encode_cursor

logger = logging.getLogger(__name__)

# Requests about endpoints and their messages that use a database connection at a time.
MAX_CONCURRENT: Final = 3
NOT_FOUND: Final = Failure(code=FailureCode.NOT_FOUND, detail="the endpoint does not exist")
CHANGED: Final = Failure(
    code=FailureCode.PRECONDITION_FAILED, detail="the endpoint has changed since its etag was read"
)
KEY_USED: Final = Failure(
    code=FailureCode.CONFLICT,
    detail="a different endpoint was created with this idempotency key",
)
TOO_MANY: Final = Failure(
    code=FailureCode.CONFLICT, detail="the client has too many endpoints; delete one first"
)
IS_DISABLED: Final = Failure(
    code=FailureCode.CONFLICT, detail="the endpoint is disabled; resume it first"
)
NO_DELIVERY: Final = Failure(
    code=FailureCode.NOT_FOUND, detail="the endpoint has no message with this id"
)
INVALID_CURSOR: Final = invalid([FieldError(field="cursor", message="is not a valid cursor")])


class _PreconditionFailedError(Exception):
    """The endpoint is not in the state that the caller has read."""


class EndpointRequests:
    """Handles requests about endpoints. `changed` is called after a change is committed.

    requests: limits the requests that use a database connection at a time.
    replay_rate: maximum number of deliveries of a replay per second.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        messages: EndpointMessages,
        requests: asyncio.Semaphore,
        *,
        changed: Callable[[], None],
        replay_rate: float,
    ) -> None:
        self._endpoints = endpoints
        self._messages = messages
        self._requests = requests
        self._changed = changed
        self._replay_rate = replay_rate

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict(
            (
                bound(CREATE_ENDPOINT, self._create, within="endpoint"),
                bound(GET_ENDPOINT, self._get),
                bound(LIST_ENDPOINTS, self._list),
                bound(CHANGE_ENDPOINT, self._change, within="change"),
                bound(DELETE_ENDPOINT, self._delete),
                bound(PAUSE_ENDPOINT, self._pause),
                bound(RESUME_ENDPOINT, self._resume),
                bound(ROTATE_SECRET, self._rotate),
                bound(TEST_ENDPOINT, self._test),
                bound(REPLAY_ENDPOINT, self._replay, within="replay"),
                bound(LIST_REPLAYS, self._list_replays),
            )
        )

    async def _create(self, context: RequestContext, command: CreateEndpoint) -> Response:
        id_ = domain.endpoint_id(_owner(context), command.idempotency_key, _request_id(context))
        content = domain.new_content(command.endpoint)
        try:
            async with self._requests:
                endpoint = await self._endpoints.create(_owner(context), id_, content)
        except TooManyEndpointsError:
            return TOO_MANY
        except KeyUsedError:
            return KEY_USED
        logger.info("endpoint created", extra=_ids(context, endpoint.id))
        return endpoint.created()

    async def _get(self, context: RequestContext, command: GetEndpoint) -> Response:
        async with self._requests:
            endpoint = await self._endpoints.find(_owner(context), command.id)
        return NOT_FOUND if endpoint is None else endpoint.response()

    async def _list(self, context: RequestContext, command: ListEndpoints) -> Response:
        try:
            before = END if command.cursor is None else decode_cursor(command.cursor)
        except ValueError:
            return INVALID_CURSOR
        async with self._requests:
            items, more = await self._endpoints.page(
                _owner(context), command.status, before, command.limit
            )
        return EndpointPage(
            items=[endpoint.response() for endpoint in items],
            next_cursor=encode_cursor((items[-1].created_at, items[-1].id)) if more else None,
        )

    async def _change(self, context: RequestContext, command: ChangeEndpoint) -> Response:
        def change(endpoint: StoredEndpoint) -> tuple[Content, EndpointStatus]:
            content = domain.changed(endpoint.content, command.change)
            wanted = command.change.status
            status = endpoint.status if wanted is None else EndpointStatus(wanted)
            # If the broker delivers the request again, the change is already made, and the entity
            # tag is new.
            if (content, status) != (endpoint.content, endpoint.status):
                _check(endpoint, command.if_match)
            return content, status

        return await self._changed_endpoint(context, command.id, change)

    async def _pause(self, context: RequestContext, command: ControlEndpoint) -> Response:
        return await self._set_status(context, command, EndpointStatus.PAUSED)

    async def _resume(self, context: RequestContext, command: ControlEndpoint) -> Response:
        return await self._set_status(context, command, EndpointStatus.ACTIVE)

    async def _set_status(
        self, context: RequestContext, command: ControlEndpoint, status: EndpointStatus
    ) -> Response:
        def change(endpoint: StoredEndpoint) -> tuple[Content, EndpointStatus]:
            if endpoint.status is not status:
                _check(endpoint, command.if_match)
            return endpoint.content, status

        return await self._changed_endpoint(context, command.id, change)

    async def _changed_endpoint(
        self,
        context: RequestContext,
        id_: UUID,
        change: Callable[[StoredEndpoint], tuple[Content, EndpointStatus]],
    ) -> Response:
        try:
            async with self._requests:
                endpoint = await self._endpoints.change(_owner(context), id_, change)
        except _PreconditionFailedError:
            return CHANGED
        if endpoint is None:
            return NOT_FOUND
        self._changed()
        extra = _ids(context, id_) | {"status": endpoint.status.value}
        logger.info("endpoint changed", extra=extra)
        return endpoint.response()

    async def _delete(self, context: RequestContext, command: ControlEndpoint) -> Response:
        try:
            async with self._requests:
                deleted = await self._endpoints.delete(
                    _owner(context), command.id, lambda found: _check(found, command.if_match)
                )
        except _PreconditionFailedError:
            return CHANGED
        if not deleted:
            return NOT_FOUND
        self._changed()
        logger.info("endpoint deleted", extra=_ids(context, command.id))
        return EndpointDeleted(id=command.id)

    async def _rotate(self, context: RequestContext, command: RotateSecret) -> Response:
        rotation = command.idempotency_key or _request_id(context)
        try:
            async with self._requests:
                endpoint = await self._endpoints.rotate(
                    _owner(context),
                    command.id,
                    rotation,
                    lambda found: _check(found, command.if_match),
                )
        except _PreconditionFailedError:
            return CHANGED
        if endpoint is None or endpoint.old_secret_until is None:
            return NOT_FOUND
        logger.info("secret rotated", extra=_ids(context, command.id))
        return SecretRotated(secret=endpoint.secret, old_secret_until=endpoint.old_secret_until)

    async def _test(self, context: RequestContext, command: ControlEndpoint) -> Response:
        owner = _owner(context)
        message_id = domain.message_id(owner, None, _request_id(context))
        async with self._requests:
            endpoint = await self._endpoints.find(owner, command.id)
            if endpoint is None:
                return NOT_FOUND
            if endpoint.status is EndpointStatus.DISABLED:
                return IS_DISABLED
            await self._messages.test(owner, message_id, command.id)
        self._changed()
        logger.info("test message sent", extra=_ids(context, command.id))
        return EndpointTested(message_id=message_id)

    async def _replay(self, context: RequestContext, command: ReplayEndpoint) -> Response:
        owner, replay = _owner(context), command.replay
        id_ = domain.replay_id(owner, _request_id(context))
        async with self._requests:
            endpoint = await self._endpoints.find(owner, command.id)
            if endpoint is None:
                return NOT_FOUND
            if endpoint.status is EndpointStatus.DISABLED:
                return IS_DISABLED
            if replay.since is not None:
                until = replay.until or datetime.max.replace(tzinfo=UTC)
                await self._endpoints.replay(id_, command.id, replay.since, until)
            elif replay.message_id is not None:
                replayed = await self._messages.replay(
                    owner, replay.message_id, command.id, self._replay_rate
                )
                if replayed is Replayed.NOT_FOUND:
                    return NO_DELIVERY
        self._changed()
        logger.info("replay started", extra=_ids(context, command.id))
        return ReplayStarted(id=id_)

    async def _list_replays(self, context: RequestContext, command: ListReplays) -> Response:
        try:
            before = END if command.cursor is None else decode_cursor(command.cursor)
        except ValueError:
            return INVALID_CURSOR
        async with self._requests:
            if await self._endpoints.find(_owner(context), command.id) is None:
                return NOT_FOUND
            found = await self._endpoints.replays(command.id, before, command.limit + 1)
        page = found[: command.limit]
        more = len(found) > command.limit
        return ReplayPage(
            items=page,
            next_cursor=encode_cursor((page[-1].created_at, page[-1].id)) if more else None,
        )


def _owner(context: RequestContext) -> str:
    return context.client_id or ""


def _request_id(context: RequestContext) -> str:
    return context.message_id or new_id()


def _check(endpoint: StoredEndpoint, if_match: list[str] | None) -> None:
    if not endpoint.matches(if_match):
        raise _PreconditionFailedError


def _ids(context: RequestContext, id_: UUID) -> dict[str, str | None]:
    """Return the ids for a log line."""
    return {"endpoint_id": str(id_), "client_id": context.client_id}
