"""Every operation of the HTTP interface, declared once: its path, its forms, its answers."""

from collections.abc import Sequence
from typing import Final

from services.gateway.operations import callbacks, events, groups, postings
from shared.http.openapi import Description, Operation
from shared.version import VERSION

ABOUT: Final = Description(
    title="Ringback",
    version=VERSION,
    text="Ringback calls you back: it notifies your service at a set moment, at least once, never"
    " early, under one id over all retries.\n\n"
    "**Who calls.** A service ticket in `X-Service-Ticket` (or as bearer token) says which client"
    " calls; each client sees its own callbacks only. Without a ticket you are the anonymous"
    " client, as far as that is allowed here.\n\n"
    "**Errors** are `application/problem+json` (RFC 9457); a 422 names every wrong field. After"
    " 503 nothing was done. After 504 that is unknown: repeat with the same `Idempotency-Key`, or"
    " ask for the status.",
    tags={
        callbacks.TAG: "Schedule callbacks, see how they are, move, cancel and retry them, by id.",
        groups.TAG: "The same by your own keys: `group_key` joins callbacks, `event_key` names"
        " one.",
        events.TAG: "Say what has happened. What follows from it, Ringback's rules say.",
        postings.TAG: "Send a template to many users, by e-mail or SMS, and see how far it is.",
    },
    schemes={
        "ticket": {
            "type": "apiKey",
            "in": "header",
            "name": "X-Service-Ticket",
            "description": "A service ticket: a JWT whose `sub` is the client id and whose `aud`"
            " is `ringback`. `ringback ticket CLIENT_ID` makes one for development.",
        },
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    },
)


def operations(example_url: str) -> Sequence[Operation]:
    """All of them; examples call `example_url`, and name users and data of the same server."""
    return (
        *callbacks.operations(example_url),
        *groups.operations(),
        *events.operations(example_url),
        *postings.operations(example_url),
    )
