"""The callback service, killed with SIGKILL at one exact point.

`python -m tests.acceptance.crashing POINT` runs the service with one collaborator wrapped, so that
the process kills itself when it first reaches that point.
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from services.callback import app
from shared.amqp import fact_sender
from shared.amqp.publisher import OutgoingMessage, Publisher
from shared.http.client import Client, HttpResponse
from shared.process.run import Parts, serve
from shared.settings import Settings, load
from shared.topology import OUTCOMES, SCHEDULER_OUTCOMES

Matching = Callable[[OutgoingMessage], bool]

PUBLISHES: Final[Mapping[str, Matching]] = {
    "tier copy": lambda message: ".retry." in message.routing_key,
    "dead letter": lambda message: message.routing_key.endswith(".dead"),
    "copy with an id": lambda message: message.routing_key == "callbacks",
    "observers' facts": lambda message: message.exchange == OUTCOMES,
    "owner's facts": lambda message: message.routing_key == SCHEDULER_OUTCOMES,
}
POINTS: Final = (
    "before the POST",
    "after the POST",
    *(f"{when} the {what}" for what in PUBLISHES for when in ("before", "after")),
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def install_crash(point: str) -> None:
    """Wrap the collaborator that reaches this point."""
    when, _, what = point.partition(" the ")
    if what == "POST":
        setattr(app, "Client", _client(when))  # noqa: B010 - app only imports the name
    else:
        dying = _publisher(when, PUBLISHES[what])
        for module in (app, fact_sender):
            setattr(module, "Publisher", dying)  # noqa: B010 - as above


def _client(when: str) -> type[Client]:
    class Dying(Client):
        async def send(self, *arguments: Any, **named: Any) -> HttpResponse:
            if when == "before":
                die()
            response = await super().send(*arguments, **named)
            die()
            return response

    return Dying


def _publisher(when: str, matches: Matching) -> type[Publisher]:
    class Dying(Publisher):
        def publish(self, message: OutgoingMessage) -> Any:
            if not matches(message):
                return super().publish(message)
            if when == "before":
                die()
            done = super().publish(message)
            # The first callback of the confirm runs before any await, so before the ack.
            done.add_done_callback(lambda _: die())
            return done

    return Dying


if __name__ == "__main__":
    install_crash(sys.argv[1])
    sys.exit(serve("callback", app.start, load(Settings), Parts(metrics_port=0)))
