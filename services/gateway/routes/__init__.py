"""Every route of the HTTP API; each module declares the routes of one resource with their handlers.

The aiohttp routes and the OpenAPI document both follow from these declarations.
"""

from services.gateway.messenger.declaration import TAG, TOKEN_SCHEME
from services.gateway.routes import (
    callback_batches,
    callbacks,
    clients,
    dead_letters,
    endpoint_actions,
    endpoint_messages,
    endpoints,
    events,
    groups,
    journal,
    mailing_messages,
    mailings,
    messenger,
    polls,
    postings,
    replays,
    statistics,
)
from services.gateway.routes.declaration import Route
from shared.http.openapi import Description
from shared.version import VERSION


def about(ticket_header: str) -> Description:
    """Return the general part of the document; clients send their ticket in this header."""
    return Description(
        title="Ringback",
        version=VERSION,
        text="Ringback calls your service back at a given time: at least once, never early, and"
        " with the same id on every retry.\n\n"
        f"**Authentication.** A service ticket in `{ticket_header}`, or as a bearer token,"
        " identifies your client. Each client sees only its own callbacks, mailings and directory"
        " of recipients. Without a ticket you are the anonymous client, if this server allows"
        " it.\n\n"
        "**Errors** are `application/problem+json` (RFC 9457). A 422 names every rejected field."
        " After a 503 nothing was done. After a 504 that is unknown: repeat the request with the"
        " same `Idempotency-Key`, or check the status.",
        license="Apache-2.0",
        tags={
            callbacks.TAG: "Schedule callbacks. Get, reschedule, cancel and retry them by id.",
            groups.TAG: "The same operations by your own keys: `group_key` names a group,"
            " `event_key` one callback in it.",
            events.TAG: "Publish events. Ringback's rules turn them into commands.",
            postings.TAG: "Send a template to a list of users, by e-mail or SMS, and follow its"
            " progress.",
            clients.TAG: "The people whom your mailings reach: create, import, search, change and"
            " delete them.",
            endpoints.TAG: "The URLs of your customers. A message is sent to each endpoint that"
            " selects its event type.",
            dead_letters.TAG: "Messages that failed for good: count, list, redrive and discard"
            " them, and follow the jobs that do this. For operators.",
            mailings.TAG: "Send a text to clients in their own daytime. Pause, resume and cancel"
            " it.",
            journal.TAG: "What happened: every attempt, the story of each callback, the health of"
            " targets, and who did what.",
            TAG: "A small messenger. Its users register, sign in, send messages, and get their"
            " events by callback, long poll or server-sent events. Every response except events"
            ' has a `code`: 10 for success. Errors are `{"code", "description"}`.'
            " A body can also be a form (`application/x-www-form-urlencoded`) with the same"
            " fields. It can be empty if the token is a bearer token and no field is required.",
        },
        schemes={
            "ticket": {
                "type": "apiKey",
                "in": "header",
                "name": ticket_header,
                "description": "A service ticket: a JWT whose `sub` is the client id and whose"
                " `aud` is `ringback`. `ringback ticket CLIENT_ID` creates one for development.",
            },
            "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
            TOKEN_SCHEME: {
                "type": "http",
                "scheme": "bearer",
                "description": "The token of a user of the messenger. It can also be sent in the"
                " field `token` of the body.",
            },
        },
        usual_schemes=("ticket", "bearer"),
    )


def all_routes(example_url: str) -> tuple[Route, ...]:
    """Return all routes; the examples call `example_url`, and use data from the same server."""
    return (
        *callbacks.routes(example_url),
        *callback_batches.routes(example_url),
        *replays.routes(),
        *groups.routes(example_url),
        *journal.routes(),
        *events.routes(example_url),
        *postings.routes(example_url),
        *statistics.routes(),
        *clients.routes(),
        *mailings.routes(),
        *mailing_messages.routes(),
        *endpoints.routes(),
        *endpoint_actions.routes(),
        *endpoint_messages.routes(),
        *messenger.routes(example_url),
        *polls.routes(),
        *dead_letters.routes(),
    )
