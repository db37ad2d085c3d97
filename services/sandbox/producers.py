"""The producers: they publish events over AMQP when they are told to."""

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any, Final, get_args
from uuid import uuid4

import aio_pika
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity, DeliveryError
from aiohttp import web
from aiormq.tools import censor_url
from yarl import URL

from services.sandbox.apis import base
from services.sandbox.events import EVENTS, EXCHANGE, TYPE, Producer, Producers, Production
from services.sandbox.layout import HEADERS, framed, moment, tag
from services.sandbox.parsing import PROBLEM, parsed

KEPT: Final = 20
"""Publications that the page shows."""
SHOWN_EVENTS: Final = 3
"""Events that it shows of one of them."""
_IN_FLIGHT: Final = 500
_PATIENCE: Final = 5.0
"""Seconds for the broker to answer: what is not there is said soon."""
_NAME = f"{{name:{'|'.join(get_args(Producer))}}}"


class NotPublishedError(Exception):
    """The broker did not take all of the events; says why, without a password."""


@dataclass(frozen=True, slots=True)
class Publication:
    """What a producer was told to publish, and what became of it."""

    at: float
    """Unix time in seconds."""
    producer: Producer
    count: int
    events: tuple[dict[str, Any], ...]
    """The first of them."""
    fault: str | None


class ProducersApi:
    """The HTTP handlers that tell producers what to publish."""

    def __init__(self, producers: Producers, amqp_url: str, url: URL | None) -> None:
        self._producers = producers
        self._amqp_url = amqp_url
        self._url = url
        self._publications: deque[Publication] = deque(maxlen=KEPT)

    def routes(self) -> list[web.RouteDef]:
        """Return every route."""
        return [
            web.get("/producers", self.page),
            web.post(f"/producers/{_NAME}", self.press),
            web.post(f"/api/producers/{_NAME}", self.produce),
        ]

    async def produce(self, request: web.Request) -> web.Response:
        """Publish, and answer with the events once the broker has confirmed them all."""
        production = parsed(Production, await request.read() or b"{}")
        events, fault = await self._publish(request, production)
        if fault is None:
            return web.json_response({"events": events}, status=201)
        problem = {
            "type": "about:blank",
            "title": "Service Unavailable",
            "status": 503,
            "detail": fault,
        }
        return web.json_response(problem, status=503, content_type=PROBLEM)

    async def press(self, request: web.Request) -> web.Response:
        """Publish one event for a person, who finds on the page what became of it."""
        await self._publish(request, Production())
        raise web.HTTPSeeOther("/producers")

    async def page(self, _request: web.Request) -> web.Response:
        """Show the producers, and what they have published."""
        buttons = "".join(map(_button, EVENTS.items()))
        done = "".join(map(_publication, reversed(self._publications)))
        main = f"<h2>Producers</h2><div class=mailboxes>{buttons}</div><h2>Last published</h2>" + (
            done or "<div class='card empty'><p>Nothing yet: press a button.</p></div>"
        )
        return web.Response(body=framed(main, here="/producers"), headers=HEADERS)

    async def _publish(
        self, request: web.Request, production: Production
    ) -> tuple[list[dict[str, Any]], str | None]:
        producer: Any = request.match_info["name"]
        now = datetime.now(UTC)
        url = base(self._url, request)
        events = list(self._producers.events(producer, production, url, now))
        fault = None
        try:
            await publish(self._amqp_url, events)
        except NotPublishedError as error:
            fault = str(error)
        shown = tuple(events[:SHOWN_EVENTS])
        publication = Publication(now.timestamp(), producer, len(events), shown, fault)
        self._publications.append(publication)
        return events, fault


async def publish(amqp_url: str, events: Sequence[dict[str, Any]]) -> None:
    """Publish the events, in order, on a connection of their own; return when all are confirmed.

    The exchange is not declared: it is Ringback's.

    Raises:
        NotPublishedError: not all of them were taken.
    """
    shown = censor_url(URL(amqp_url))
    try:
        async with asyncio.timeout(_PATIENCE):
            connection = await aio_pika.connect(amqp_url)
    except (AMQPError, OSError, TimeoutError) as error:
        raise NotPublishedError(
            f"no connection to RabbitMQ at {shown}: {_described(error)}"
        ) from None
    try:
        async with connection:
            channel = await connection.channel(on_return_raises=True)
            exchange = await channel.get_exchange(EXCHANGE)
            for start in range(0, len(events), _IN_FLIGHT):
                await asyncio.gather(
                    *(_publish_one(exchange, each) for each in events[start:][:_IN_FLIGHT])
                )
    except ChannelNotFoundEntity:
        raise NotPublishedError(
            f"RabbitMQ at {shown} has no exchange {EXCHANGE!r}: run `ringback topology declare`"
        ) from None
    except DeliveryError:
        raise NotPublishedError(
            f"no queue takes it: nothing is bound to the exchange {EXCHANGE!r} for it, or the queue"
            " is full; run `ringback topology check`"
        ) from None
    except (AMQPError, OSError, TimeoutError) as error:
        raise NotPublishedError(
            f"RabbitMQ at {shown} did not confirm; some may have been taken: {_described(error)}"
        ) from None


async def _publish_one(exchange: aio_pika.abc.AbstractExchange, event: dict[str, Any]) -> None:
    message = aio_pika.Message(
        json.dumps(event).encode(),
        content_type="application/json",
        type=TYPE,
        message_id=str(uuid4()),
        timestamp=datetime.now(UTC),
        app_id=event["from_service"],
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )
    key = f"{event['from_service']}.{event['event']}"
    await exchange.publish(message, routing_key=key, timeout=_PATIENCE)


def _described(error: BaseException) -> str:
    """Return an error as a few words; some have no text."""
    return str(error) or type(error).__name__


def _button(item: tuple[Producer, str]) -> str:
    producer, event = item
    return (
        f"<div class='card mailbox'><b>{producer}</b><p>publishes <code>{event}</code></p>"
        f"<form method=post action='/producers/{producer}'><button>Publish one</button></form>"
        "</div>"
    )


def _publication(publication: Publication) -> str:
    events = "\n".join(
        json.dumps(event, indent=2, ensure_ascii=False) for event in publication.events
    )
    if publication.count > SHOWN_EVENTS:
        events += f"\n… {publication.count:,} in all"
    state = tag("not published", "bad") if publication.fault else tag("confirmed", "good")
    fault = f"<p class=fault>{escape(publication.fault)}</p>" if publication.fault else ""
    return (
        f"<article class='card delivery'><div class=line>{moment(publication.at)}"
        f"<span class=name>{publication.producer}</span>"
        f"<span class=tags>{state}</span></div>{fault}<pre>{escape(events)}</pre></article>"
    )
