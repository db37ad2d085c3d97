"""The producers: they publish events over AMQP on request."""

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
from yarl import URL

from services.sandbox.apis import base_url
from services.sandbox.events import EVENTS, EXCHANGE, TYPE, Producer, Producers, PublishRequest
from services.sandbox.layout import HEADERS, page_html, tag, time_of_day
from services.sandbox.parsing import PROBLEM, parse
from shared.amqp.addresses import addresses, redacted
from shared.amqp.connection import NoConnectionError, connect_to_first

# Publications that the page shows.
MAX_PUBLICATIONS: Final = 20
# Events that the page shows of each publication.
MAX_SHOWN_EVENTS: Final = 3
_MAX_IN_FLIGHT: Final = 500
# Seconds.
_BROKER_TIMEOUT: Final = 5.0
_NAME = f"{{name:{'|'.join(get_args(Producer))}}}"


class NotPublishedError(Exception):
    """The broker did not confirm all events. The text contains no password."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A request to publish, and its result."""

    # Unix time in seconds.
    at: float
    producer: Producer
    count: int
    # The first `MAX_SHOWN_EVENTS` of them.
    events: tuple[dict[str, Any], ...]
    fault: str | None


class ProducersApi:
    """The HTTP handlers of the producers."""

    def __init__(self, producers: Producers, amqp_url: str, url: URL | None) -> None:
        self._producers = producers
        self._amqp_url = amqp_url
        self._url = url
        self._publications: deque[Publication] = deque(maxlen=MAX_PUBLICATIONS)

    def routes(self) -> list[web.RouteDef]:
        """Return every route."""
        return [
            web.get("/producers", self.page),
            web.post(f"/producers/{_NAME}", self.publish_from_page),
            web.post(f"/api/producers/{_NAME}", self.publish_from_api),
        ]

    async def publish_from_api(self, request: web.Request) -> web.Response:
        """Publish, and return the events when the broker has confirmed all of them."""
        publish_request = parse(PublishRequest, await request.read() or b"{}")
        events, fault = await self._publish(request, publish_request)
        if fault is None:
            return web.json_response({"events": events}, status=201)
        problem = {
            "type": "about:blank",
            "title": "Service Unavailable",
            "status": 503,
            "detail": fault,
        }
        return web.json_response(problem, status=503, content_type=PROBLEM)

    async def publish_from_page(self, request: web.Request) -> web.Response:
        """Publish one event and return to the page, which shows the result."""
        await self._publish(request, PublishRequest())
        raise web.HTTPSeeOther("/producers")

    async def page(self, _request: web.Request) -> web.Response:
        """Return the page of the producers and their last publications."""
        buttons = "".join(map(_button, EVENTS.items()))
        done = "".join(map(_publication, reversed(self._publications)))
        main = f"<h2>Producers</h2><div class=mailboxes>{buttons}</div><h2>Last published</h2>" + (
            done
            or "<div class='card empty'><p>Nothing published yet. Press a button above.</p></div>"
        )
        return web.Response(body=page_html(main, here="/producers"), headers=HEADERS)

    async def _publish(
        self, request: web.Request, publish_request: PublishRequest
    ) -> tuple[list[dict[str, Any]], str | None]:
        producer: Any = request.match_info["name"]
        now = datetime.now(UTC)
        url = base_url(self._url, request)
        events = list(self._producers.events(producer, publish_request, url, now))
        fault = None
        try:
            await publish(self._amqp_url, events)
        except NotPublishedError as error:
            fault = str(error)
        shown = tuple(events[:MAX_SHOWN_EVENTS])
        publication = Publication(now.timestamp(), producer, len(events), shown, fault)
        self._publications.append(publication)
        return events, fault


async def publish(amqp_url: str, events: Sequence[dict[str, Any]]) -> None:
    """Publish the events in order on a new connection; return when all are confirmed.

    The exchange belongs to Ringback, so this does not declare it.

    Raises:
        NotPublishedError: the broker did not confirm all of them.
    """
    try:
        async with asyncio.timeout(_BROKER_TIMEOUT):
            connection = await connect_to_first(addresses(amqp_url), aio_pika.connect)
    except (NoConnectionError, TimeoutError) as error:
        raise NotPublishedError(f"Cannot connect to RabbitMQ: {_describe(error)}.") from None
    shown = redacted(amqp_url)
    try:
        async with connection:
            channel = await connection.channel(on_return_raises=True)
            exchange = await channel.get_exchange(EXCHANGE)
            for start in range(0, len(events), _MAX_IN_FLIGHT):
                await asyncio.gather(
                    *(_publish_one(exchange, event) for event in events[start:][:_MAX_IN_FLIGHT])
                )
    except ChannelNotFoundEntity:
        raise NotPublishedError(
            f"Cannot publish: RabbitMQ at {shown} has no exchange {EXCHANGE!r}. "
            "Run `ringback topology declare`."
        ) from None
    except DeliveryError:
        raise NotPublishedError(
            f"Cannot publish: no queue is bound to the exchange {EXCHANGE!r} for this event, or "
            "the queue is full. Run `ringback topology check`."
        ) from None
    except (AMQPError, OSError, TimeoutError) as error:
        raise NotPublishedError(
            f"RabbitMQ at {shown} did not confirm all events: {_describe(error)}. "
            "Some of them may have been published."
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
    await exchange.publish(message, routing_key=key, timeout=_BROKER_TIMEOUT)


def _describe(error: BaseException) -> str:
    """Return an error's text, or its type if it has none."""
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
    if publication.count > MAX_SHOWN_EVENTS:
        events += f"\n… {publication.count:,} in total"
    state = tag("not published", "bad") if publication.fault else tag("confirmed", "good")
    fault = f"<p class=fault>{escape(publication.fault)}</p>" if publication.fault else ""
    return (
        f"<article class='card delivery'><div class=line>{time_of_day(publication.at)}"
        f"<span class=name>{publication.producer}</span>"
        f"<span class=tags>{state}</span></div>{fault}<pre>{escape(events)}</pre></article>"
    )
