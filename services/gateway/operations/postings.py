"""The operations of `/v1/postings`."""

from collections.abc import Sequence
from typing import Final

from services.gateway import examples
from services.gateway.operations.declaring import (
    BODY,
    failures,
    idempotency_key,
    identity,
    in_state,
    ok,
    page,
    problem,
)
from shared.contracts.posting_requests import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_SIZE,
    MessageState,
    PostingAccepted,
    PostingMessages,
    Postings,
    PostingStatus,
)
from shared.contracts.postings import Posting
from shared.http.openapi import Body, Operation, Parameter, Response

TAG: Final = "postings"

_ANY: Final = failures("broker, database or mailings are away", "Mailings did not answer in time")
_NOT_FOUND: Final = {404: problem("The caller has no such posting.")}
_PAGE: Final = page(longest=MAX_PAGE_SIZE, default=DEFAULT_PAGE_SIZE)
_ID: Final = identity("posting", examples.ID)


def operations(example_url: str) -> Sequence[Operation]:
    """All of them; URLs in examples lead to the server of `example_url`."""
    return (
        Operation(
            id="create_posting",
            method="post",
            path="/v1/postings",
            tag=TAG,
            summary="Send a template to many users",
            description="Answered once it is committed: from then on every receiver is gone"
            " through, across restarts, and nobody gets the message twice because of one. Who did"
            " not tick this way of delivery, or this kind of notification, gets none.",
            parameters=(
                idempotency_key(
                    "A repeat with the same key and body answers the same and sends nothing."
                ),
            ),
            body=Body(Posting, examples.postings(example_url)),
            answers={
                202: Response(
                    "Taken in.",
                    Body(PostingAccepted, {"Response": examples.POSTING_ACCEPTED}),
                    {"Location": "Where its progress is."},
                ),
                409: problem("The Idempotency-Key was used for another body."),
                **BODY,
                **_ANY,
            },
        ),
        Operation(
            id="list_postings",
            method="get",
            path="/v1/postings",
            tag=TAG,
            summary="List postings",
            description="With `from_event`, what has come of an event.",
            parameters=(
                Parameter("from_event", "query", "Only those that came from this event."),
                *_PAGE,
            ),
            answers={
                200: ok(
                    "A page, newest first.",
                    Postings,
                    {"items": [examples.POSTING_PROGRESS], "next_cursor": None},
                ),
                **_ANY,
            },
        ),
        Operation(
            id="get_posting",
            method="get",
            path="/v1/postings/{id}",
            tag=TAG,
            summary="See how far a posting is",
            parameters=(_ID,),
            answers={
                200: ok("Its progress.", PostingStatus, examples.POSTING_STATUS),
                **_NOT_FOUND,
                **_ANY,
            },
        ),
        Operation(
            id="list_posting_messages",
            method="get",
            path="/v1/postings/{id}/messages",
            tag=TAG,
            summary="List the messages of a posting",
            parameters=(
                _ID,
                in_state([state.value for state in MessageState]),
                *_PAGE,
            ),
            answers={
                200: ok(
                    "A page, in the order of their ids.",
                    PostingMessages,
                    {"items": [examples.POSTING_MESSAGE], "next_cursor": None},
                ),
                **_NOT_FOUND,
                **_ANY,
            },
        ),
    )
