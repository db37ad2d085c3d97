"""The request handlers: the audit log."""

import asyncio
from collections.abc import Mapping

from services.journal.attempts.store import NEWEST
from services.journal.audit.store import Audit
from services.journal.scope import INVALID_CURSOR, decode_place, encode_place, for_operators
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.contracts.journal_reads import (
    LIST_AUDIT,
    RECORD_AUDIT,
    AuditPage,
    ListAudit,
    RecordAudit,
    Recorded,
)


class AuditRequests:
    """Handles requests about the audit log. Only operators may send them."""

    def __init__(self, audit: Audit, slots: asyncio.Semaphore) -> None:
        self._audit = audit
        self._slots = slots

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict(
            (
                bound(LIST_AUDIT, for_operators(self._list)),
                bound(RECORD_AUDIT, for_operators(self._record)),
            )
        )

    async def _list(self, _: RequestContext, request: ListAudit) -> Response:
        try:
            before = NEWEST if request.cursor is None else decode_place(request.cursor)
        except ValueError:
            return INVALID_CURSOR
        async with self._slots:
            found = await self._audit.page(request, before, request.limit + 1)
        shown = found[: request.limit]
        return AuditPage(
            items=[entry for _, entry in shown],
            next_cursor=encode_place(shown[-1][0]) if len(found) > len(shown) else None,
        )

    async def _record(self, context: RequestContext, request: RecordAudit) -> Response:
        async with self._slots:
            await self._audit.record(
                context,
                request.action,
                object_=request.object,
                client_id=request.client_id,
                detail=request.detail,
                result=request.result,
            )
        return Recorded()
