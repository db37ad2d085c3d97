"""The operation of `/v1/events`."""

from collections.abc import Sequence
from typing import Final

from services.gateway import examples
from services.gateway.operations.declaring import BODY, failures, idempotency_key, ok
from services.gateway.schemas import EventAccepted
from shared.contracts.events import Event
from shared.http.openapi import Body, Operation

TAG: Final = "events"

_ANY: Final = failures(
    "the broker is away, takes nothing, or an alarm is on", "The broker did not confirm in time"
)


def operations(example_url: str) -> Sequence[Operation]:
    """All of them; URLs in examples lead to the server of `example_url`."""
    return (
        Operation(
            id="publish_event",
            method="post",
            path="/v1/events",
            tag=TAG,
            summary="Say that something has happened",
            description="For producers without AMQP: the body is the message `Event` and goes out"
            " as the bytes it came as. Answered once the broker has confirmed it; from then on it"
            " is not lost. An event that comes again, with the same `event_id` (or, without one,"
            " the same `Idempotency-Key`), is not acted on again.",
            parameters=(
                idempotency_key(
                    "Names the event where the body has no `event_id`: a repeat is safe then."
                ),
            ),
            body=Body(Event, examples.events(example_url)),
            answers={
                202: ok(
                    "Taken in. `id` is what the event is known by: its `event_id`, else the"
                    " `Idempotency-Key`, else a fresh one.",
                    EventAccepted,
                    examples.EVENT_ACCEPTED,
                ),
                **BODY,
                **_ANY,
            },
        ),
    )
