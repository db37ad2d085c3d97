"""The request handlers of the queue `delivery.requests`."""

import logging
from collections.abc import Awaitable, Callable, Mapping

from pydantic import BaseModel

from services.delivery.store import Store
from shared.amqp.parsing import parse_request
from shared.amqp.rpc import RequestContext
from shared.contracts.delivery_requests import STOP_MAILING, MailingStopped, StopMailing
from shared.contracts.requests import Failure

logger = logging.getLogger(__name__)

Response = BaseModel | Failure
Handler = Callable[[RequestContext, bytes], Awaitable[Response]]


class Requests:
    """Handles requests. They come from services of Ringback only."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return {STOP_MAILING.name: self._stop_mailing}

    async def _stop_mailing(self, _: RequestContext, body: bytes) -> Response:
        command = parse_request(StopMailing, body)
        if isinstance(command, Failure):
            return command
        await self._store.stop(command.mailing_id, command.version, command.at)
        context = {"mailing_id": command.mailing_id, "at": command.at}
        logger.info("stop of a mailing stored", extra=context)
        return MailingStopped(mailing_id=command.mailing_id)
