"""Has the scheduler send a notification every day at the configured time."""

import asyncio
import logging
from typing import Any, Final

from services.mailings.campaigns.partners import CLIENT_ID, TIMEOUT, PartnerError
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_client import RpcClient
from shared.contracts.requests import Failure, FailureCode
from shared.contracts.schedule_requests import (
    GET_CALLBACK,
    PUT_CALLBACK,
    GetCallback,
    PutCallback,
)
from shared.contracts.schedules import NotifyScheme, Repeat, ScheduleCallback
from shared.errors import InfrastructureError
from shared.topology import MAILINGS_REPORTS, REPORT_KEY

logger = logging.getLogger(__name__)

# Seconds between two checks that the callback exists, and between two attempts.
INTERVAL: Final = 3600.0
RETRY_DELAY: Final = 5.0
GROUP: Final = "reports"
KEY: Final = "daily"
# A callback needs a URL. The transport amqp does not use it.
_UNUSED_URL: Final = "https://mailings.invalid/"


class ReportSchedule:
    """Keeps a recurring callback at a local time, such as `08:00`, in a time zone."""

    def __init__(self, client: RpcClient, *, at: str, timezone: str) -> None:
        self._client = client
        self._settings = {"at": at, "timezone": timezone}
        hour, minute = map(int, at.split(":"))
        self._repeat = Repeat(cron=f"{minute} {hour} * * *", timezone=timezone)

    async def run(self) -> None:
        """Keep the callback until cancelled."""
        while True:
            try:
                await self._client.ready()
                await self.ensure()
            except InfrastructureError as error:
                logger.warning("daily report not scheduled: %s", error)
                await asyncio.sleep(RETRY_DELAY)
            else:
                await asyncio.sleep(INTERVAL)

    async def ensure(self) -> None:
        """Create the callback, or replace one with other settings.

        A callback with these settings is left alone: it may be overdue, and a new one would skip
        its report.

        Raises:
            InfrastructureError: it is unknown whether it exists.
        """
        get = GetCallback(group_key=GROUP, event_key=KEY)
        found = await self._request(GET_CALLBACK.name, get.model_dump_json(exclude_unset=True))
        if not isinstance(found, Failure):
            # Other versions of the scheduler respond with more or fewer fields.
            if found.get("context") == self._settings:
                return
        elif found.code is not FailureCode.NOT_FOUND:
            raise PartnerError(f"Cannot find the schedule of reports: {found.detail}")
        callback = ScheduleCallback(
            url=_UNUSED_URL,
            group_key=GROUP,
            event_key=KEY,
            context=self._settings,
            repeat=self._repeat,
            notify_scheme=NotifyScheme(
                transport="amqp", exchange=MAILINGS_REPORTS, routing_key=REPORT_KEY
            ),
        )
        put = PutCallback(callback=callback)
        result = await self._request(PUT_CALLBACK.name, put.model_dump_json(exclude_unset=True))
        if isinstance(result, Failure):
            raise PartnerError(f"Cannot schedule reports: {result.detail}")
        logger.info("daily report scheduled", extra={"run_at": result["run_at"]})

    async def _request(self, operation: str, body: str) -> Any:
        return await self._client.request(
            GET_CALLBACK.queue,
            operation,
            body.encode(),
            context=RequestContext(CLIENT_ID),
            timeout=TIMEOUT,
        )
