"""The handlers of requests about the client directory. Each caller sees only its own clients."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from pydantic import ValidationError

from services.mailings.clients import domain
from services.mailings.clients.domain import Fields, StoredClient
from services.mailings.clients.store import Directory, PhoneTakenError
from shared.amqp.publisher import new_id
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.contracts.client_requests import (
    CHANGE_CLIENT,
    CREATE_CLIENT,
    DELETE_CLIENT,
    GET_CLIENT,
    IMPORT_CLIENTS,
    LIST_CLIENTS,
    ChangeClient,
    ClientDeleted,
    ClientPage,
    ClientsImported,
    CreateClient,
    DeleteClient,
    GetClient,
    ImportClients,
    ListClients,
    RejectedLine,
)
from shared.contracts.clients import NewClient
from shared.contracts.context import field_errors
from shared.contracts.requests import Failure, FailureCode, FieldError, invalid

logger = logging.getLogger(__name__)

# Requests that use a database connection at a time, and imports that do: they take longer.
MAX_CONCURRENT: Final = 2
MAX_CONCURRENT_IMPORTS: Final = 1
# Characters of the reason why a line is rejected, which names unknown fields.
MAX_REASON: Final = 300
# Ids in one log line: it has less than 4 KiB, so that workers can write to one pipe.
MAX_LOGGED: Final = 50
NOT_FOUND: Final = Failure(code=FailureCode.NOT_FOUND, detail="the client does not exist")
PHONE_TAKEN: Final = Failure(code=FailureCode.CONFLICT, detail="another client has this phone")
CHANGED: Final = Failure(
    code=FailureCode.PRECONDITION_FAILED, detail="the client has changed since its etag was read"
)
INVALID_CURSOR: Final = invalid([FieldError(field="cursor", message="is not a valid cursor")])


class _PreconditionFailedError(Exception):
    """The client is not in the state that the caller has read."""


class ClientRequests:
    """Handles requests about clients."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._requests = asyncio.Semaphore(MAX_CONCURRENT)
        self._imports = asyncio.Semaphore(MAX_CONCURRENT_IMPORTS)

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict(
            (
                bound(CREATE_CLIENT, self._create, within="client"),
                bound(GET_CLIENT, self._get),
                bound(LIST_CLIENTS, self._list),
                bound(CHANGE_CLIENT, self._change, within="change"),
                bound(DELETE_CLIENT, self._delete),
                bound(IMPORT_CLIENTS, self._import),
            )
        )

    async def _create(self, context: RequestContext, command: CreateClient) -> Response:
        id_ = _first_id(context)
        fields = domain.new_fields(command.client)
        try:
            async with self._requests:
                client = await self._directory.create(_owner(context), id_, fields)
        except PhoneTakenError:
            return PHONE_TAKEN
        logger.info("client created", extra=_ids(context, client.id))
        return client.response()

    async def _get(self, context: RequestContext, command: GetClient) -> Response:
        async with self._requests:
            client = await self._directory.find(_owner(context), command.id)
        return NOT_FOUND if client is None else client.response()

    async def _list(self, context: RequestContext, command: ListClients) -> Response:
        try:
            async with self._requests:
                found = await self._page(_owner(context), command)
        except ValueError:
            return INVALID_CURSOR
        items = found[: command.limit]
        cursor = None
        if len(found) > command.limit:
            last = items[-1]
            cursor = str(last.id) if command.phone is None else last.fields.phone
        return ClientPage(items=[client.response() for client in items], next_cursor=cursor)

    async def _page(self, owner: str, command: ListClients) -> list[StoredClient]:
        """Return one client more than the page has, if more follow.

        Raises:
            ValueError: the cursor is not valid.
        """
        if command.phone is not None:
            after = "" if command.cursor is None else domain.parse_phone(command.cursor)
            return await self._directory.page_by_phone(
                *(owner, after, command.limit + 1, domain.phones(command.phone)),
                operator_code=command.operator_code,
                tag=command.tag,
                timezone=command.timezone,
            )
        first = UUID(int=0) if command.cursor is None else UUID(command.cursor)
        return await self._directory.page(
            *(owner, first, command.limit + 1),
            operator_codes=() if command.operator_code is None else (command.operator_code,),
            tags=() if command.tag is None else (command.tag,),
            timezone=command.timezone,
        )

    async def _change(self, context: RequestContext, command: ChangeClient) -> Response:
        def change(client: StoredClient) -> Fields:
            after = domain.changed(client.fields, command.change)
            # A request that is delivered again finds its change made, and a new entity tag.
            if after != client.fields and not client.matches(command.if_match):
                raise _PreconditionFailedError
            return after

        try:
            async with self._requests:
                client = await self._directory.change(_owner(context), command.id, change)
        except PhoneTakenError:
            return PHONE_TAKEN
        except _PreconditionFailedError:
            return CHANGED
        if client is None:
            return NOT_FOUND
        logger.info("client changed", extra=_ids(context, client.id))
        return client.response()

    async def _delete(self, context: RequestContext, command: DeleteClient) -> Response:
        def check(client: StoredClient) -> None:
            if not client.matches(command.if_match):
                raise _PreconditionFailedError

        try:
            async with self._requests:
                deleted = await self._directory.delete(_owner(context), command.id, check)
        except _PreconditionFailedError:
            return CHANGED
        if not deleted:
            return NOT_FOUND
        logger.info("client deleted", extra=_ids(context, command.id))
        return ClientDeleted(id=command.id)

    async def _import(self, context: RequestContext, command: ImportClients) -> Response:
        valid: dict[str, tuple[UUID, Fields]] = {}  # by phone: the last line of a phone wins
        errors: list[RejectedLine] = []
        id_ = _first_id(context).int
        for number, line in enumerate(command.lines):
            try:
                fields = domain.new_fields(NewClient.model_validate(line.client))
            except ValidationError as error:
                reason = "; ".join(map(str, field_errors(error)))[:MAX_REASON]
                errors.append(RejectedLine(line=line.line, reason=reason))
            else:
                valid[fields.phone] = UUID(int=id_ + number), fields
        created, written = 0, list[UUID]()
        if valid:
            async with self._imports:
                created, written = await self._directory.import_all(
                    _owner(context), list(valid.values())
                )
        updated = len(command.lines) - len(errors) - created
        logger.info(
            "clients imported",
            extra={
                "client_id": context.client_id,
                "lines": len(command.lines),
                "failed": len(errors),
            },
        )
        for start in range(0, len(written), MAX_LOGGED):
            ids = [str(id_) for id_ in written[start : start + MAX_LOGGED]]
            logger.info(
                "clients changed by an import",
                extra={"client_id": context.client_id, "recipient_ids": ids},
            )
        return ClientsImported(created=created, updated=updated, failed=len(errors), errors=errors)


def _owner(context: RequestContext) -> str:
    return context.client_id or ""


def _first_id(context: RequestContext) -> UUID:
    return domain.first_id(_owner(context), context.message_id or new_id())


def _ids(context: RequestContext, id_: UUID) -> dict[str, str | None]:
    """Return the ids for a log line."""
    return {"recipient_id": str(id_), "client_id": context.client_id}
