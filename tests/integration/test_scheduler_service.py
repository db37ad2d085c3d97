"""The scheduler as a process of its own, used over AMQP only."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_client import RpcClient
from shared.contracts.requests import Failure
from shared.contracts.schedules import callback_id_of_message
from shared.process.health import Health
from shared.security.jwks import shared_key
from shared.security.tickets import TicketIssuer
from tests.fakes.broker_client import SECRET
from tests.fakes.callback_service import Arrival, FakeCallbackService, fake_callback_service
from tests.fakes.command import ringback
from tests.fakes.sandbox import running_sandbox
from tests.fakes.scheduling import SECRETS_KEY, TICKET_KEY, URL, connected
from tests.fakes.service import Service, running
from tests.fakes.waiting import until

RUN = ("-m", "services", "run", "scheduler", "--metrics-port", "0")


def settings(database_url: str, **more: str) -> dict[str, str]:
    return {
        "RINGBACK_DATABASE_URL": database_url,
        "RINGBACK_SECRETS_KEY": SECRETS_KEY,
        "RINGBACK_TICKET_KEY": TICKET_KEY,
        "RINGBACK_LOG_LEVEL": "DEBUG",
    } | more


@pytest.fixture(scope="module")
def scheduler(
    shared_amqp_url: str, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    async def empty() -> None:
        async with connected(database_url):
            pass

    asyncio.run(empty())
    directory = tmp_path_factory.mktemp("scheduler")
    with running(directory, shared_amqp_url, settings(database_url), RUN) as service:
        asyncio.run(service.ready())
        yield service


@pytest.fixture
async def callbacks(scheduler: Service, shared_amqp_url: str) -> AsyncIterator[FakeCallbackService]:
    assert not scheduler.exited(), scheduler.output
    async with fake_callback_service(shared_amqp_url) as service:
        yield service


@pytest.fixture
async def requester(scheduler: Service, shared_amqp_url: str) -> AsyncIterator[RpcClient]:
    assert not scheduler.exited(), scheduler.output
    client = RpcClient(shared_amqp_url, name="test", health=Health())
    task = asyncio.create_task(client.run())
    await client.ready()
    yield client
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def request(
    requester: RpcClient, operation: str, client: str | None = None, **body: Any
) -> Any:
    """Send a request as the gateway does."""
    raw = json.dumps(body).encode()
    return await requester.request(
        "scheduler.requests", operation, raw, context=RequestContext(client), timeout=10
    )


def in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def test_s11_a_callback_is_sent_at_its_due_time_and_settled_by_the_fact(
    callbacks: FakeCallbackService, requester: RpcClient
) -> None:
    due = time.time() + 1.5
    body = {"url": URL, "run_at": in_seconds(1.5), "context": {"a": 1}, "hmac_secret": "s"}
    callback = str(callback_id_of_message("", await callbacks.send(body)))
    await until(lambda: callbacks.arrivals_of(callback))
    (arrival,) = callbacks.arrivals_of(callback)
    assert 0 <= arrival.at - due + 0.01 < 1
    assert arrival.body["payload"]["context"] == {"a": 1}
    assert arrival.headers["x-ringback-owner"] == "scheduler"
    await until(lambda: callback in callbacks.reported("notified"))
    status = await request(requester, "GetCallback", id=callback)
    assert (status["status"], status["attempts"]) == ("notified", 1)


async def test_s11_a_redelivered_message_creates_one_callback(
    callbacks: FakeCallbackService,
) -> None:
    message_id = uuid4().hex
    body = {"url": URL, "delay": 0.2, "event_key": message_id}
    for _ in range(3):
        await callbacks.send(body, message_id=message_id)
    callback = str(callback_id_of_message("", message_id))
    await until(lambda: callback in callbacks.reported("notified"))
    await callbacks.send(body, message_id=message_id)
    assert await callbacks.dead_letters() == []
    assert len(callbacks.arrivals_of(callback)) == 1


async def test_finding_a14_a_message_id_used_for_another_callback_is_dead_lettered(
    callbacks: FakeCallbackService,
) -> None:
    message_id = await callbacks.send({"url": URL, "delay": 900, "context": 1})
    await callbacks.send({"url": URL, "delay": 900, "context": 2}, message_id=message_id)
    reason = str((await callbacks.dead_letter()).headers["x-ringback-reason"])
    assert "message_id was used before" in reason


async def test_finding_a13_a_cancel_that_overtakes_its_callback_is_not_dead_lettered(
    callbacks: FakeCallbackService,
) -> None:
    key = uuid4().hex
    await callbacks.send({"event_key": key}, "CancelCallback")
    # Another scheduler inserts the callback later than this one has looked for it.
    await asyncio.sleep(1)
    await callbacks.send({"url": URL, "delay": 900, "event_key": key})
    await until(lambda: [f for f in callbacks.facts if f["event_key"] == key][1:])
    types = {fact["type"] for fact in callbacks.facts if fact["event_key"] == key}
    assert types == {"schedule.created", "schedule.cancelled"}
    assert await callbacks.dead_letters() == []


async def test_s3_a_command_with_a_used_key_is_dead_lettered_with_the_reason(
    callbacks: FakeCallbackService,
) -> None:
    for _ in range(2):
        await callbacks.send({"url": URL, "delay": 900, "group_key": "g", "event_key": "twice"})
    assert "event_key" in str((await callbacks.dead_letter()).headers["x-ringback-reason"])


async def test_s8_a_callback_cancelled_right_after_its_creation_is_never_sent(
    callbacks: FakeCallbackService,
) -> None:
    keys = [uuid4().hex for _ in range(50)]
    for key in keys:
        await callbacks.send({"url": URL, "delay": 3, "event_key": key})
        await callbacks.send({"event_key": key}, "CancelCallback")
    last = await callbacks.send({"url": URL, "delay": 3.1})
    await until(lambda: callbacks.arrivals_of(str(callback_id_of_message("", last))))
    assert await callbacks.dead_letters() == []
    await until(lambda: len(callbacks.reported("cancelled")) == len(keys))
    assert {each.body["payload"]["event_key"] for each in callbacks.arrivals} == {None}


async def test_s8_a_callback_can_be_rescheduled_over_amqp(callbacks: FakeCallbackService) -> None:
    key = uuid4().hex
    await callbacks.send({"url": URL, "delay": 3600, "event_key": key})
    await callbacks.send({"event_key": key, "delay": 0.1}, "RescheduleCallback")
    await until(lambda: [a for a in callbacks.arrivals if a.body["payload"]["event_key"] == key])


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'{"url": "ftp://x", "delay": -1}', ("url", "delay")),
        (b'{"url": "%s", "run_at": "2026-11-20T15:00:00"}' % URL.encode(), ("timezone",)),
        (b'{"url": "%s", "run_at": "1970-01-01T00:00:00Z"}' % URL.encode(), ("30 days",)),
        (b'{"url": "%s", "run_at": "2099-01-01T00:00:00Z"}' % URL.encode(), ("ten years",)),
        (b'{"url": "%s", "context": {"retry_params": {"x": 1}}}' % URL.encode(), ("params.x",)),
        (b'{"url": "%s", "context": "\\u0000"}' % URL.encode(), ("NUL",)),
        (b'{"url": "%s", "context": NaN}' % URL.encode(), ("number",)),
        (b'{"url": "%s", "context": 1e999999}' % URL.encode(), ("number",)),
        (b'{"url": "%s", "context": "\\ud800"}' % URL.encode(), ("JSON",)),
        (b'{"url": "x", "context": %s}' % (b"[" * 10_000 + b"]" * 10_000), ("recursion",)),
        (b"not json", ("JSON",)),
    ],
)
async def test_row_26_an_invalid_command_is_dead_lettered_with_every_error(
    callbacks: FakeCallbackService, body: bytes, named: tuple[str, ...]
) -> None:
    await callbacks.send(body)
    reason = str((await callbacks.dead_letter()).headers["x-ringback-reason"])
    assert all(name in reason for name in named), reason


async def test_unknown_types_and_unknown_callbacks_are_dead_lettered(
    callbacks: FakeCallbackService,
) -> None:
    await callbacks.send({"url": URL}, "DeleteEverything")
    assert "DeleteEverything" in str((await callbacks.dead_letter()).headers["x-ringback-reason"])
    await callbacks.send({"id": str(uuid4())}, "CancelCallback")
    # It is looked for again three times, every five seconds.
    dead_letter = await callbacks.dead_letter(60)
    assert "callback not found" in str(dead_letter.headers["x-ringback-reason"])


async def test_s9_the_ticket_is_read_from_a_header(
    callbacks: FakeCallbackService, requester: RpcClient
) -> None:
    ticket = TicketIssuer(shared_key(TICKET_KEY)).issue("shop", lifetime=60)
    message_id = await callbacks.send(
        {"url": URL, "delay": 900}, headers={"x-service-ticket": ticket}
    )
    callback = callback_id_of_message("shop", message_id)
    await until(lambda: _exists(requester, "shop", callback))
    assert (await request(requester, "GetCallback", id=str(callback))).code == "not_found"
    await callbacks.send({"url": URL}, headers={"x-service-ticket": ticket[:-3] + "abc"})
    assert "ticket" in str((await callbacks.dead_letter()).headers["x-ringback-reason"])


async def _exists(requester: RpcClient, client: str, callback: UUID) -> bool:
    response = await request(requester, "GetCallback", client, id=str(callback))
    return not isinstance(response, Failure)


async def test_requests_get_responses(requester: RpcClient) -> None:
    assert await request(requester, "Ping") == {"status": "ready"}
    created = await request(requester, "CreateCallback", callback={"url": URL, "delay": 900})
    assert created["status"] == "scheduled"
    cancelled = await request(requester, "CancelCallbacks", id=created["id"])
    assert cancelled == {"id": created["id"], "result": "cancelled"}
    failure = await request(requester, "CreateCallback", callback={"url": "x", "y": 1})
    assert {each.field for each in failure.errors} == {"url", "y"}


async def test_a_failed_dispatch_is_retried_by_the_scheduler(
    callbacks: FakeCallbackService, requester: RpcClient
) -> None:
    def fail_twice(arrival: Arrival) -> tuple[str, dict[str, Any]]:
        if arrival.dispatch < 3:
            return "callback.dispatch_failed", {"reason": "responded with 500", "final": False}
        return "callback.delivered", {"status": 200, "duration": 0.1}

    callbacks.behaviour = fail_twice
    params = {"strategy": "constant", "base_delay": 0.2, "quick_retries_count": 0}
    message_id = await callbacks.send({"url": URL, "retry_params": params})
    callback = str(callback_id_of_message("", message_id))
    await until(lambda: callback in callbacks.reported("notified"))
    arrivals = callbacks.arrivals_of(callback)
    assert [each.dispatch for each in arrivals] == [1, 2, 3]
    assert [each.body["payload"]["attempt"] for each in arrivals] == [1, 2, 3]
    assert (await request(requester, "GetCallback", id=callback))["attempts"] == 3


async def test_metrics_and_a_log_line_report_a_callback(
    scheduler: Service, callbacks: FakeCallbackService
) -> None:
    lags = "ringback_schedule_lag_seconds_count"
    before = await scheduler.metric(lags)
    callback = str(callback_id_of_message("", await callbacks.send({"url": URL})))
    await until(lambda: callback in callbacks.reported("notified"))
    await scheduler.metric_reaches(before + 1, lags)
    assert await scheduler.metric("ringback_schedules_created_total", outcome="created") > 0
    assert await scheduler.metric("ringback_schedules_settled_total", status="notified") > 0
    assert scheduler.logged("scheduled callback notified", schedule_id=callback)


async def test_the_scheduler_does_not_start_without_secrets_key_or_database(
    database_url: str,
) -> None:
    for missing in ("RINGBACK_SECRETS_KEY", "RINGBACK_DATABASE_URL"):
        given = settings(database_url)
        del given[missing]
        output = await ringback("run", "scheduler", amqp_url="amqp://127.0.0.1:9/", **given)
        assert output.code == 2
        assert missing in output.err


async def test_a_callback_reaches_the_receiver_through_the_callback_service(
    shared_amqp_url: str, tmp_path: Path, requester: RpcClient
) -> None:
    with running(tmp_path, shared_amqp_url) as callback:
        await callback.ready()
        async with running_sandbox() as receiver:
            url = await receiver.mailbox()
            due = time.time() + 1
            command = {"url": url, "run_at": in_seconds(1), "hmac_secret": SECRET, "context": 1}
            created = await request(requester, "CreateCallback", "shop", callback=command)
            (webhook,) = await receiver.webhooks(url)
            assert time.time() >= due
            headers = {name.lower(): value for name, value in webhook["headers"].items()}
            assert headers["webhook-id"] == created["id"]
            assert headers["x-signature"]
            assert headers["x-service-ticket"]

            async def notified() -> bool:
                status = await request(requester, "GetCallback", "shop", id=created["id"])
                return bool(status["status"] == "notified")

            await until(notified)
