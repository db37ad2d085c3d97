"""The composition root of the callback service: the only module that constructs objects."""

import asyncio
import socket
from functools import partial

from services.callback import metrics
from services.callback.breakers import breaker_reporter, lane_reporter
from services.callback.domain import retry_policy
from services.callback.handlers import CallbackSender, Reporter
from services.callback.kept import EXCERPT_BYTES, Keeper
from services.callback.pauses import PauseFollower, Pauses
from services.callback.settings import CallbackSettings
from shared.amqp.consumer import Consumer
from shared.amqp.fact_sender import FactSender
from shared.amqp.message import ConsumerSpec
from shared.amqp.parsing import parse_message
from shared.amqp.publisher import Publisher
from shared.clock import SystemClock
from shared.contracts.callback import SEND_CALLBACK, SendCallback
from shared.contracts.headers import OWNERS
from shared.http.client import Client
from shared.http.guard import Guard
from shared.process.command import Service
from shared.process.run import Process
from shared.registry import SERVICES
from shared.resilience.breakers import breaker_observer
from shared.resilience.lanes import Lanes
from shared.security.settings import SecuritySettings
from shared.settings import load
from shared.topology import CALLBACKS, CONTROLS, OWNER_QUEUES, topology
from shared.version import VERSION


async def start(process: Process) -> None:
    """Construct and start the callback service."""
    settings = load(CallbackSettings)
    clock = SystemClock()
    labels = metrics.TargetLabels(settings.max_targets)

    cipher = None
    if (key := load(SecuritySettings).secrets_key) is not None:
        # Without a key, a worker does not need the library, which takes 9 MB.
        from shared.security.encryption import SecretCipher  # noqa: PLC0415

        cipher = SecretCipher.of(key.get_secret_value())
    declared = topology(process.settings.queue_type).only(
        (CALLBACKS, *(OWNER_QUEUES[owner] for owner in sorted(OWNERS)))
    )
    name = f"ringback callback {socket.gethostname()}"
    url, health = process.settings.amqp_url, process.health
    publisher = Publisher(url, name=f"{name} publisher", topology=declared, health=health)
    facts = FactSender(publisher, url=url, name=name, health=health)
    client = await process.stack.enter_async_context(
        Client(
            Guard(settings.allowed_networks, settings.allowed_ports),
            user_agent=f"Ringback/{VERSION}",
            connect_timeout=settings.connect_timeout,
            excerpt=EXCERPT_BYTES,
        )
    )
    lanes = Lanes(
        max_in_flight=settings.lane_limit,
        prefetch=settings.prefetch,
        max_failures=settings.breaker_failures,
        clock=asyncio.get_running_loop().time,
        observe=breaker_reporter(breaker_observer(labels.label), facts.send_unconfirmed, clock),
        report_full=lane_reporter(facts.send_unconfirmed, clock),
    )
    pauses = Pauses(clock)
    follower = PauseFollower(
        pauses,
        url=url,
        name=f"{name} controls",
        topology=topology(process.settings.queue_type).only((CONTROLS,)),
        health=health,
    )
    sender = CallbackSender(
        client, lanes=lanes, pauses=pauses, labels=labels, settings=settings, clock=clock
    )
    keeper = Keeper(cipher, process.settings.journal_bodies)
    consumer = Consumer(
        ConsumerSpec(
            queue=CALLBACKS,
            parse=partial(
                parse_message,
                models={SEND_CALLBACK: SendCallback},
                max_bytes=settings.max_message_bytes,
            ),
            identity=_identity,
            handle=sender.handle,
            policy=partial(retry_policy, give_up_after=settings.give_up_after),
            report=Reporter(clock, keeper).report,
            send_facts=facts.send,
            drain=lanes.drain,
            ready=follower.ready,
        ),
        url=url,
        name=f"{name} consumer",
        topology=declared,
        publisher=publisher,
        prefetch=settings.prefetch,
        clock=clock,
        health=health,
    )
    process.run(lanes.run())
    process.run(follower.run())
    process.run(publisher.run())
    process.run(facts.run())
    process.run(consumer.run())
    process.on_drain(consumer.drain)
    process.on_drain(facts.drain)


def _identity(command: SendCallback) -> str | None:
    return command.id


SERVICE = Service(SERVICES["callback"], (CallbackSettings, SecuritySettings), start)
