"""The requests of campaigns to other services: the scheduler starts, delivery stops."""

from typing import Final

from services.mailings.campaigns.records import StoredMailing
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_client import RpcClient
from shared.contracts.delivery_requests import STOP_MAILING, StopMailing
from shared.contracts.mailings import MailingStatus
from shared.contracts.requests import Failure, FailureCode
from shared.contracts.schedule_requests import CREATE_CALLBACK, CreateCallback
from shared.contracts.schedules import NotifyScheme, ScheduleCallback
from shared.errors import InfrastructureError
from shared.topology import MAILINGS_STARTS, START_KEY

# The reserved client id under which mailings schedules. No ticket can name it.
CLIENT_ID: Final = "ringback.mailings"
# Seconds to wait for a response. The gateway waits for 10 s for ours.
TIMEOUT: Final = 4.0
# A callback needs a URL. The transport amqp does not use it.
_UNUSED_URL: Final = "https://mailings.invalid/"


class PartnerError(InfrastructureError):
    """The other service did not carry out a request."""


class Partners:
    """The other services, over RPC."""

    def __init__(self, client: RpcClient) -> None:
        self._client = client

    async def request_start(self, mailing: StoredMailing) -> None:
        """Have the scheduler send a notification at the start time. A repeat changes nothing.

        Raises:
            InfrastructureError: it is unknown whether it will.
        """
        start_at = mailing.start_at.isoformat()
        callback = ScheduleCallback(
            url=_UNUSED_URL,
            run_at=mailing.start_at,
            group_key=str(mailing.id),
            event_key=start_at,
            notify_scheme=NotifyScheme(
                transport="amqp", exchange=MAILINGS_STARTS, routing_key=START_KEY
            ),
        )
        command = CreateCallback(callback=callback, idempotency_key=f"{mailing.id}/{start_at}")
        response = await self._client.request(
            CREATE_CALLBACK.queue,
            CREATE_CALLBACK.name,
            command.model_dump_json(exclude_unset=True).encode(),
            context=RequestContext(CLIENT_ID, mailing.traceparent),
            timeout=TIMEOUT,
        )
        # A conflict: the callback was created by an earlier version of Ringback.
        if isinstance(response, Failure) and response.code is not FailureCode.CONFLICT:
            raise PartnerError(f"Cannot schedule a mailing: {response.detail}")

    async def request_stop(self, mailing: StoredMailing) -> None:
        """Have delivery stop a mailing, or continue it until its end time.

        Raises:
            InfrastructureError: it is unknown whether it does.
        """
        stopped = mailing.status in (MailingStatus.PAUSED, MailingStatus.CANCELLED)
        command = StopMailing(
            mailing_id=str(mailing.id),
            version=mailing.stop_version,
            at=None if stopped else mailing.content.end_at,
        )
        response = await self._client.request(
            STOP_MAILING.queue,
            STOP_MAILING.name,
            command.model_dump_json().encode(),
            context=RequestContext(CLIENT_ID, mailing.traceparent),
            timeout=TIMEOUT,
        )
        if isinstance(response, Failure):
            raise PartnerError(f"Cannot stop a mailing: {response.detail}")
