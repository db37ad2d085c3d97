"""The events that producers publish.

This follows the published format and does not import names from Ringback's code, so that one checks
the other.
"""

from collections.abc import Iterator
from datetime import datetime
from itertools import count, cycle
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from services.sandbox.movies import NEW_MOVIES, Catalogue
from services.sandbox.users import Directory

EXCHANGE = "events"
TYPE = "Event"

Producer = Literal["auth", "fastapi", "activity_api", "cinema_scanner"]
EVENTS: dict[Producer, str] = {
    "auth": "user_signed_up",
    "fastapi": "new_episode",
    "activity_api": "reactions_summary",
    "cinema_scanner": "new_movies",
}


class PublishRequest(BaseModel):
    """A request to publish `count` events, each about another user, movie or review.

    The other fields are copied into each event; `details` and `event` replace the defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    count: int = Field(1, ge=1, le=10_000)
    event: str | None = Field(None, min_length=1, max_length=100)
    details: dict[str, Any] | None = None
    event_id: str | None = Field(None, min_length=1, max_length=255)
    occurred_at: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None


class Producers:
    """Creates events; each is about the next user, movie, series or review."""

    def __init__(self, directory: Directory) -> None:
        self._users = directory.reachable(start=0)
        self._numbers: dict[str, Iterator[int]] = {
            "fastapi": cycle(range(len(Catalogue("").series()))),
            "activity_api": count(1),
            "cinema_scanner": cycle(range(1, NEW_MOVIES + 1)),
        }

    def events(
        self, producer: Producer, publish_request: PublishRequest, base: str, now: datetime
    ) -> Iterator[dict[str, Any]]:
        """Create the events; URLs in them begin with `base`."""
        copied = publish_request.model_dump(
            mode="json", include={"event_id", "expires_at"}, exclude_none=True
        )
        for _ in range(publish_request.count):
            yield {
                "from_service": producer,
                "event": publish_request.event or EVENTS[producer],
                "details": publish_request.details or self._details(producer, base),
                "occurred_at": (publish_request.occurred_at or now).isoformat(),
                **copied,
            }

    def _details(self, producer: Producer, base: str) -> dict[str, Any]:
        if producer == "auth":
            user = next(self._users)
            return {"username": user["email"], "user": f"{base}/auth/api/v1/users/{user['id']}/"}
        number = next(self._numbers[producer])
        if producer == "fastapi":
            return {"series": [Catalogue(base).series()[number]["url"]]}
        if producer == "activity_api":
            target = f"{base}/activity_api/api/v1/reviews/{number}"
            return {"stats": [{"type": "like", "total": 1 + number % 9, "target": target}]}
        return {"movies": [movie["url"] for movie in Catalogue(base).movies(new=True)[:number]]}
