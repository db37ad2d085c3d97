"""The request handler: the overview. One read a second serves all callers of a process."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

from services.journal.attempts.store import Entries
from services.journal.overview.cache import Shared
from services.journal.overview.findings import findings
from services.journal.scope import for_operators
from services.journal.targets.requests import since
from services.journal.targets.store import Figures, quantiles
from shared.amqp.depth import QueueDepth, QueueDepthUnknownError
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.amqp.rpc_client import RpcClient
from shared.contracts.journal_figures import (
    READ_OVERVIEW,
    Overview,
    QueueFigures,
    ReadOverview,
)
from shared.contracts.requests import Failure
from shared.contracts.schedule_requests import READ_BACKLOG, BacklogFigures
from shared.errors import InfrastructureError
from shared.topology import WORK_QUEUES, dead_queue, tier_queue

# The reserved client id of the journal. No ticket can name it.
CLIENT_ID: Final = "ringback.journal"
# Targets in the overview.
MAX_TARGETS: Final = 10
# Seconds to wait for the scheduler. The overview is shown without its figures.
SCHEDULER_TIMEOUT: Final = 1.0
# Seconds after which the last check of the lag is too old: it is repeated every five.
CHECK_LIFETIME: Final = 15.0
_DAY: Final = timedelta(days=1)


class OverviewRequests:
    """Handles requests for the overview. Only operators may send them.

    monotonic, now: return seconds; `now` since the epoch.
    """

    def __init__(  # noqa: PLR0913 - the composition root names each
        self,
        figures: Figures,
        entries: Entries,
        depth: QueueDepth,
        scheduler: RpcClient,
        slots: asyncio.Semaphore,
        *,
        monotonic: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self._figures = figures
        self._entries = entries
        self._depth = depth
        self._scheduler = scheduler
        self._slots = slots
        self._now = now
        self._shared: Shared[int, Overview] = Shared(self._overview, monotonic)

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict((bound(READ_OVERVIEW, for_operators(self._read)),))

    async def _read(self, _: RequestContext, request: ReadOverview) -> Response:
        return await self._shared.get(request.minutes)

    async def _overview(self, minutes: int) -> Overview:
        queues, backlog = await asyncio.gather(self._queues(), self._backlog())
        start = since(self._now(), minutes)
        async with self._slots:
            state = await self._figures.state()
            by_minute, buckets = await self._figures.minutes(start, state.now)
            targets = await self._figures.targets(start, MAX_TARGETS)
            breakers = await self._figures.breakers()
            gaps = await self._entries.gaps(state.now - _DAY)
        lag = state.lag
        if lag is not None and (state.checked_ago or 0.0) > CHECK_LIFETIME:
            lag += state.checked_ago or 0.0
        overview = Overview(
            at=state.now,
            delivered=sum(minute.delivered for minute in by_minute),
            failed=sum(minute.failed for minute in by_minute),
            **quantiles(buckets),
            minutes=by_minute,
            targets=targets,
            queues=queues,
            waiting=None if backlog is None else backlog.waiting,
            due=None if backlog is None else backlog.due,
            oldest_due=None if backlog is None else backlog.oldest_due,
            breakers=breakers,
            paused_targets=state.paused,
            running_jobs=state.running_jobs,
            lag=lag,
            gaps=gaps,
            findings=[],
        )
        return overview.model_copy(update={"findings": findings(overview)})

    async def _queues(self) -> list[QueueFigures] | None:
        """Return the depths of all work queues, or None if the broker does not respond."""
        names = [
            name
            for work in WORK_QUEUES
            for name in (
                work.name,
                *(tier_queue(work.name, tier) for tier in work.tiers),
                dead_queue(work.name),
            )
        ]
        try:
            states = await self._depth.states(names)
        except QueueDepthUnknownError:
            return None
        return [
            QueueFigures(
                queue=work.name,
                waiting=states[work.name].messages,
                tiers={
                    tier.name: states[tier_queue(work.name, tier)].messages for tier in work.tiers
                },
                dead=states[dead_queue(work.name)].messages,
                consumers=states[work.name].consumers,
            )
            for work in WORK_QUEUES
        ]

    async def _backlog(self) -> BacklogFigures | None:
        """Return the callbacks that wait in the scheduler, or None if it does not respond."""
        try:
            response = await self._scheduler.request(
                READ_BACKLOG.queue,
                READ_BACKLOG.name,
                b"{}",
                context=RequestContext(CLIENT_ID),
                timeout=SCHEDULER_TIMEOUT,
            )
        except InfrastructureError:
            return None
        if isinstance(response, Failure):
            return None
        # A scheduler of a newer version may respond with more fields.
        return BacklogFigures.model_validate(response, extra="ignore")
