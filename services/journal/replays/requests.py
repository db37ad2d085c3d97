"""The request handlers: kept requests and replays.

Clients replay their own callbacks, operators those of all. Nobody learns of another client's.
"""

import asyncio
from collections.abc import Mapping
from typing import Final
from uuid import uuid4

from services.journal.audit.store import Audit
from services.journal.replays import domain
from services.journal.replays.domain import NotReplayableError
from services.journal.replays.sending import Callback, Order, ReplaySender
from services.journal.replays.store import KeptRow, Replays
from services.journal.scope import for_operators, selected
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.contracts.journal_replays import (
    READ_REQUEST,
    REPLAY_CALLBACK,
    KeptRequest,
    ReadRequest,
    ReplayCallback,
    Replayed,
)
from shared.contracts.requests import Failure, FailureCode
from shared.security.encryption import SecretCipher

NO_SUCH_CALLBACK: Final = Failure(
    code=FailureCode.NOT_FOUND, detail="the journal knows no such callback"
)
NOT_KEPT: Final = Failure(
    code=FailureCode.NOT_KEPT,
    detail="the journal has not kept the request; RINGBACK_JOURNAL_BODIES says which it keeps",
)
SEVERAL_CLIENTS: Final = Failure(
    code=FailureCode.CONFLICT,
    detail="several clients have used this id; select the client whose callback it is",
)
NO_KEY: Final = Failure(
    code=FailureCode.NOT_KEPT,
    detail="the journal keeps no requests, because RINGBACK_SECRETS_KEY is not set",
)


class ReplayRequests:
    """Reads and replays kept requests. `slots` limits the reads at a time."""

    def __init__(
        self,
        replays: Replays,
        sender: ReplaySender,
        audit: Audit,
        cipher: SecretCipher | None,
        slots: asyncio.Semaphore,
    ) -> None:
        self._replays = replays
        self._sender = sender
        self._audit = audit
        self._cipher = cipher
        self._slots = slots

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict(
            (
                bound(READ_REQUEST, for_operators(self._read)),
                bound(REPLAY_CALLBACK, self._replay),
            )
        )

    async def _read(self, context: RequestContext, query: ReadRequest) -> Response:
        rows = await self._kept(context, query.id, query.client_id)
        if isinstance(rows, Failure):
            return rows
        try:
            request = domain.redacted(domain.opened(self._cipher, rows[0].sealed))
        except NotReplayableError as error:
            return Failure(code=FailureCode.NOT_KEPT, detail=str(error))
        await self._audit.record(
            context,
            "read_request",
            object_=rows[0].callback_id,
            client_id=rows[0].client_id or None,
        )
        return KeptRequest(callback_id=rows[0].callback_id, at=rows[0].at, request=request)

    async def _replay(self, context: RequestContext, command: ReplayCallback) -> Response:
        rows = await self._kept(context, command.id, command.client_id)
        if isinstance(rows, Failure):
            return rows
        order = Order(
            context.message_id or str(uuid4()), context.actor, command.url, context.traceparent
        )
        callbacks = [
            Callback(row.callback_id, row.client_id, row.reference, row.sealed) for row in rows
        ]
        faults = await self._sender.send(callbacks, order)
        if all(faults):
            return Failure(code=FailureCode.NOT_KEPT, detail=f"cannot be sent again: {faults[0]}")
        await self._audit.record(
            context,
            "replay",
            object_=rows[0].callback_id,
            client_id=rows[0].client_id or None,
            detail={"replay": order.replay_id, "other_url": command.url is not None},
        )
        return Replayed(id=rows[0].callback_id)

    async def _kept(
        self, context: RequestContext, id_: str, client_id: str | None
    ) -> list[KeptRow] | Failure:
        """Return the kept requests of a callback: all of one client."""
        owner = selected(context, client_id)
        if isinstance(owner, Failure):
            return owner
        async with self._slots:
            rows = await self._replays.kept(id_, owner)
            if not rows and not await self._replays.is_known(id_, owner):
                return NO_SUCH_CALLBACK
        if not rows:
            return NO_KEY if self._cipher is None else NOT_KEPT
        return rows if rows[0].clients == 1 else SEVERAL_CLIENTS
