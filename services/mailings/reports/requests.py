"""The handler of requests for daily reports."""

from collections.abc import Mapping

from services.mailings.reports.sending import ReportSender
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.contracts.mailing_statistics import GET_REPORT, GetReport, HourStatistics, Report
from shared.contracts.posting_requests import MessageState


class ReportRequests:
    """Handles requests for reports. The gateway sends none, so only operators see all mailings."""

    def __init__(self, sender: ReportSender) -> None:
        self._sender = sender

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict((bound(GET_REPORT, self._get),))

    async def _get(self, _: RequestContext, command: GetReport) -> Response:
        report, rendered = await self._sender.report(command.day)
        return Report(
            day=report.day,
            timezone=report.zone.key,
            mailings=report.mailing_count,
            total=sum(report.by_status.values()),
            by_status=report.by_status,
            by_hour=[
                HourStatistics(
                    hour=hour,
                    total=sum(counts.values()),
                    by_status={state: counts.get(state, 0) for state in MessageState},
                )
                for hour, counts in sorted(report.by_hour.items())
            ],
            by_reason=dict(report.by_reason),
            subject=rendered.subject,
            text=rendered.text,
        )
