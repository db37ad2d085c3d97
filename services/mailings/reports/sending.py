"""Sends daily reports: consumes the scheduler's notifications, and publishes e-mails."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

from pydantic import AwareDatetime, BaseModel, ConfigDict

from services.mailings.messages import ReadyMessage, outgoing
from services.mailings.rendering.formats import Rendered
from services.mailings.rendering.loader import TemplateLoader
from services.mailings.reports import domain
from services.mailings.reports.rendering import render
from services.mailings.reports.store import Reports
from shared.amqp.message import Dead, Message, Outcome
from shared.amqp.publisher import Publisher
from shared.clock import Clock
from shared.contracts.messages import SendEmail
from shared.registry import BULK, CHANNELS

logger = logging.getLogger(__name__)


class ReportNotification(BaseModel):
    """A notification of the scheduler: send the report about the day before."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_at: AwareDatetime


class ReportSender:
    """Renders reports, and publishes them to their recipients."""

    def __init__(  # noqa: PLR0913 - the composition root names each
        self,
        reports: Reports,
        templates: TemplateLoader,
        publisher: Publisher,
        clock: Clock,
        *,
        to: Sequence[str],
        zone: ZoneInfo,
        product: str,
    ) -> None:
        self._reports = reports
        self._templates = templates
        self._publisher = publisher
        self._clock = clock
        self._to = to
        self._zone = zone
        self._product = product

    async def report(self, day: date | None) -> tuple[domain.DayReport, Rendered]:
        """Return the report about a local day; without a day, about yesterday.

        Raises:
            StoreConnectionLostError: the database is unavailable.
        """
        if day is None:
            day = domain.day_before(datetime.fromtimestamp(self._clock.now(), UTC), self._zone)
        report = await self._reports.of_day(day, self._zone)
        return report, render(report, self._templates.frame(), product=self._product)

    async def handle(self, message: Message, notification: ReportNotification) -> None:
        """Publish the report. A repeat has the same ids, so delivery sends it once.

        Raises:
            InfrastructureError: the broker or the database is unavailable; repeat it later.
        """
        day = domain.day_before(notification.run_at, self._zone)
        _, rendered = await self.report(day)
        now = self._clock.now()
        await asyncio.gather(
            *(
                self._publisher.publish(
                    outgoing(_email(day, to, rendered), message.traceparent, now)
                )
                for to in self._to
            )
        )
        logger.info("daily report published", extra={"day": str(day), "recipients": len(self._to)})


def _email(day: date, to: str, rendered: Rendered) -> ReadyMessage:
    id_ = domain.message_id(day, to)
    channel = CHANNELS["email"]
    email = SendEmail(id=str(id_), to=to, **rendered._asdict())
    body = email.model_dump_json(exclude_none=True).encode()
    return ReadyMessage(id_, channel.type, channel.queues[BULK], body)


def report(
    message: Message, _: ReportNotification | None, outcome: Outcome[None]
) -> BaseModel | None:
    """Log a dead letter."""
    if isinstance(outcome, Dead):
        logger.error(
            "report notification dead-lettered",
            extra={"message_id": message.id, "reason": outcome.reason},
        )
    return None
