"""The handler of requests for daily reports."""

from collections.abc import Mapping

from services.mailings.reports.sending import ReportSender
from services.mailings.rpc import Handler, Response, bound
from shared.amqp.rpc import RequestContext
from shared.contracts.mailing_statistics import GET_REPORT, GetReport, Report


class ReportRequests:
    """Handles requests for reports. The gateway sends none, so only operators see all mailings."""

    def __init__(self, sender: ReportSender) -> None:
        self._sender = sender

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict((bound(GET_REPORT, self._get),))

    async def _get(self, _: RequestContext, command: GetReport) -> Response:
        rendered = await self._sender.rendered(command.day)
        return Report(subject=rendered.subject, text=rendered.text)
