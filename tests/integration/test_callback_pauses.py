"""N8: a callback process follows the list of paused targets, and defers without an attempt."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika

from tests.fakes.broker_client import CALLBACKS, BrokerClient, broker_client, send_callback
from tests.fakes.declaring import declare_queues
from tests.fakes.receivers import respond, serve
from tests.fakes.service import Service, running
from tests.fakes.waiting import until

# Literals on purpose: these names are part of the interface between services.
CONTROLS = "controls"


async def publish_paused(client: BrokerClient, version: int, *targets: str) -> None:
    """Publish a list of paused targets, as the journal does."""
    body = json.dumps({"version": version, "targets": targets}).encode()
    message = aio_pika.Message(body, type="PausedTargets", delivery_mode=2)
    await client.channel.default_exchange.publish(message, routing_key=CONTROLS, timeout=30)


def origin(url: str) -> str:
    """Return scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def deferrals(service: Service, callback_id: str) -> list[dict[str, Any]]:
    """Return the log lines about deferrals of a callback because of a pause."""
    return service.logged(
        "callback deferred", callback_id=callback_id, reason="the target is paused"
    )


async def test_n8_a_paused_target_gets_nothing_until_it_is_resumed(
    service: Service, publisher: BrokerClient
) -> None:
    async with serve(respond()) as receiver, serve(respond()) as other:
        paused = origin(receiver.url)
        await publish_paused(publisher, 10, paused)
        await until(lambda: service.logged("target paused", target_url=paused))
        waiting = await publisher.send(send_callback(receiver.url))
        elsewhere = await publisher.send(send_callback(other.url))
        await publisher.fact(elsewhere, "callback.delivered")
        await until(lambda: deferrals(service, waiting))
        await publish_paused(publisher, 9)  # older, so it changes nothing
        await publish_paused(publisher, 1 << 62)  # it would outdate all that follow
        await until(lambda: len(deferrals(service, waiting)) > 1)
        assert not receiver.requests
        _, figures = await service.get("/metrics")
        assert "\nringback_paused_targets_known 1.0\n" in figures

        await publish_paused(publisher, 11)
        await until(lambda: service.logged("target resumed", target_url=paused))
        deferred = len(deferrals(service, waiting))
        later = await publisher.send(send_callback(receiver.url))
        await publisher.fact(later, "callback.delivered")
        fact = await publisher.fact(waiting, "callback.delivered")
    assert fact["attempt"] == 1
    assert not deferrals(service, later)
    assert len(deferrals(service, waiting)) == deferred


async def test_n8_a_lost_stream_is_declared_again(
    service: Service, publisher: BrokerClient
) -> None:
    await publish_paused(publisher, 20, "https://kept.example:443")
    await until(lambda: service.logged("target paused", target_url="https://kept.example:443"))
    await publisher.channel.queue_delete(CONTROLS)
    await until(lambda: len(service.logged("controls is ready")) > 1)
    await publish_paused(publisher, 21, "https://other.example:443")
    await until(lambda: service.logged("target paused", target_url="https://other.example:443"))


async def test_n8_a_process_reads_the_list_before_it_consumes_and_a_pause_does_not_age(
    amqp_url: str, tmp_path: Path
) -> None:
    settings = {"RINGBACK_CALLBACK_GIVE_UP_AFTER": "1", "RINGBACK_LOG_LEVEL": "DEBUG"}
    await declare_queues(amqp_url, CALLBACKS, CONTROLS)
    async with serve(respond()) as receiver, broker_client(amqp_url) as client:
        await publish_paused(client, 1, "https://first.example:443")
        await publish_paused(client, 2, origin(receiver.url))
        callback = await client.send(send_callback(receiver.url))
        with running(tmp_path, amqp_url, settings) as service:
            # The tier of the second deferral is longer than the time to give up.
            await until(lambda: len(deferrals(service, callback)) > 1)
            assert not receiver.requests
            await publish_paused(client, 3)
            fact = await client.fact(callback, "callback.delivered")
    assert fact["attempt"] == 1
