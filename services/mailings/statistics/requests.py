"""The handlers of requests about statistics. Each caller sees only its own mailings."""

import asyncio
from collections.abc import Mapping
from typing import Final

from services.mailings.statistics.store import StatisticsStore
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.contracts.mailing_statistics import (
    GET_MAILING_STATISTICS,
    GET_STATISTICS,
    GetMailingStatistics,
    GetStatistics,
)
from shared.contracts.requests import Failure, FailureCode

# Requests that use a database connection at a time.
MAX_CONCURRENT: Final = 2
NOT_FOUND: Final = Failure(code=FailureCode.NOT_FOUND, detail="the mailing does not exist")


class StatisticsRequests:
    """Handles requests about statistics."""

    def __init__(self, store: StatisticsStore) -> None:
        self._store = store
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict(
            (
                bound(GET_STATISTICS, self._overall),
                bound(GET_MAILING_STATISTICS, self._of_mailing),
            )
        )

    async def _overall(self, context: RequestContext, _: GetStatistics) -> Response:
        async with self._slots:
            return await self._store.overall(context.client_id or "")

    async def _of_mailing(self, context: RequestContext, command: GetMailingStatistics) -> Response:
        async with self._slots:
            found = await self._store.of_mailing(context.client_id or "", command.id)
        return NOT_FOUND if found is None else found
