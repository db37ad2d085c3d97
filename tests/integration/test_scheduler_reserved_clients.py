"""M4: Ringback's own services schedule under reserved client ids, which no caller can use."""

from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from services.scheduler.handlers import Handler
from shared.amqp.codec import Properties
from shared.amqp.message import Message
from shared.contracts.schedule_changes import CancelCallback
from shared.security.tickets import InvalidTicketError, TicketVerifier
from shared.topology import MAILINGS_STARTS, START_KEY
from tests.fakes.gateway import ticket
from tests.fakes.scheduling import ALLOWED_EXCHANGE, TICKET_KEY, URL, Scheduler, schedulers

SERVICE: Final = "ringback.mailings"
INTERNAL: Final = {"transport": "amqp", "exchange": MAILINGS_STARTS, "routing_key": START_KEY}
KEYS: Final = {"group_key": "mailing", "event_key": "start"}
OUTSIDE: Final = (None, "shop", "ringback", "Ringback.mailings", "shop.ringback.mailings")


@pytest.fixture
async def scheduler(database_url: str) -> AsyncIterator[Scheduler]:
    async with schedulers(database_url) as (one,):
        yield one


async def test_m4_a_service_notifies_its_exchange(scheduler: Scheduler) -> None:
    callback = await scheduler.create(SERVICE, notify_scheme=INTERNAL)
    await scheduler.make_due(callback)
    (envelope,) = await scheduler.dispatch()
    assert envelope["id"] == str(callback)
    sent = scheduler.broker.sent[-1]
    assert (sent.exchange, sent.routing_key) == (MAILINGS_STARTS, START_KEY)


@pytest.mark.parametrize("client", OUTSIDE)
@pytest.mark.parametrize("operation", ["CreateCallback", "PutCallback"])
async def test_m4_only_services_notify_internal_exchanges(
    scheduler: Scheduler, operation: str, client: str | None
) -> None:
    callback = {"url": URL, "notify_scheme": INTERNAL, **KEYS}
    rejected = await scheduler.request(operation, client, callback=callback)
    assert rejected["errors"][0]["field"] == "notify_scheme.exchange"


async def test_m4_services_notify_no_other_exchange(scheduler: Scheduler) -> None:
    scheme = INTERNAL | {"exchange": ALLOWED_EXCHANGE}
    callback = {"url": URL, "notify_scheme": scheme}
    rejected = await scheduler.request("CreateCallback", SERVICE, callback=callback)
    assert rejected["errors"][0]["field"] == "notify_scheme.exchange"


@pytest.mark.parametrize("client", OUTSIDE)
async def test_m4_no_caller_sees_or_changes_the_callbacks_of_a_service(
    scheduler: Scheduler, client: str | None
) -> None:
    callback = await scheduler.create(SERVICE, notify_scheme=INTERNAL, **KEYS)
    selectors: tuple[dict[str, Any], ...] = ({"id": str(callback)}, KEYS)
    for by in selectors:
        found = await scheduler.request("GetCallback", client, **by)
        assert found["code"] == "not_found"
        cancelled = await scheduler.request("CancelCallbacks", client, **by)
        assert cancelled["result"] == "not_found"
        moved = await scheduler.request("RescheduleCallback", client, **by, delay=60)
        assert moved["result"] == "not_found"
    assert (await scheduler.request("ListCallbacks", client))["items"] == []
    group = await scheduler.request("CancelCallbacks", client, group_key=KEYS["group_key"])
    assert group["items"] == []
    assert (await scheduler.request("RetryCallbacks", client, all=True))["count"] == 0
    ran = await scheduler.request("RunCallback", client, id=str(callback))
    assert ran["result"] == "not_found"
    assert (await scheduler.status(callback, SERVICE))["status"] == "scheduled"


async def test_m4_a_message_with_a_ticket_of_a_service_is_dead_lettered(
    scheduler: Scheduler,
) -> None:
    """Somebody who has the key still cannot act as a service of Ringback."""
    callback = await scheduler.create(SERVICE, notify_scheme=INTERNAL, **KEYS)
    handler = Handler(
        scheduler.intake,
        scheduler.operations,
        TicketVerifier(TICKET_KEY),
        anonymous=True,
        ticket_header="X-Service-Ticket",
    )
    forged = Properties(headers={"x-service-ticket": ticket(SERVICE, key=TICKET_KEY)})
    with pytest.raises(InvalidTicketError, match="must not begin with ringback"):
        await handler.handle(Message("m", forged, b"{}"), CancelCallback(id=callback))
    assert (await scheduler.status(callback, SERVICE))["status"] == "scheduled"
