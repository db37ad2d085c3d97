"""The few movies, series and reviews of the data APIs. They never change."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

_TITLES = (
    "The Long Queue",
    "Acknowledged",
    "A Letter to Nobody",
    "Nine Minutes to Midnight",
    "The Quiet Broker",
    "Return Address",
    "Dead Letters",
    "The Last Confirm",
    "Prefetch",
    "A Second Try",
    "Time to Live",
    "The Slow Consumer",
    "Under the Exchange",
    "Summer in Kaliningrad",
    "No Route Home",
    "The Binding",
    "Half Open",
    "Circuit Breaker",
    "Salt & Pepper <Director's Cut>",
    "Обратный звонок",
)
_GENRES = ("drama", "thriller", "comedy", "documentary", "mystery")
# The number of new movies: the first ones of the list.
NEW_MOVIES = 6
_SERIES = ("Heartbeat", "The Night Shift", "Backoff", "Lanes")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The catalogue; its links begin with the base URL."""

    base: str

    def movies(self, *, new: bool | None = None) -> list[dict[str, Any]]:
        """Return all movies, or only new or old ones."""
        places = range(len(_TITLES))
        return [self._movie(place) for place in places if new in (None, place < NEW_MOVIES)]

    def movie(self, identity: UUID) -> dict[str, Any] | None:
        """Return one movie, if there is one with this id."""
        return next(
            (self._movie(n) for n, title in enumerate(_TITLES) if _id(title) == identity), None
        )

    def series(self) -> list[dict[str, Any]]:
        """Return all series."""
        return [self._one_series(place) for place in range(len(_SERIES))]

    def one_series(self, identity: UUID) -> dict[str, Any] | None:
        """Return one series, if there is one with this id."""
        return next((series for series in self.series() if series["id"] == str(identity)), None)

    def review(self, identity: str, author: str) -> dict[str, Any]:
        """Return a review by this user; every id has one."""
        place = sha256(identity.encode()).digest()[0] % len(_TITLES)
        movie = self._movie(place)
        return {
            "id": identity,
            "author": f"{self.base}/auth/api/v1/users/{author}/",
            "author_id": author,
            "movie": movie["url"],
            "title": f"On “{movie['title']}”",
            "text": "It arrived late, but it arrived.",
            "score": 1 + place % 10,
        }

    def _movie(self, place: int) -> dict[str, Any]:
        title = _TITLES[place]
        return {
            "id": str(_id(title)),
            "url": f"{self.base}/fastapi/api/v1/movies/{_id(title)}/",
            "title": title,
            "description": f"A {_GENRES[place % len(_GENRES)]} about what happens in between.",
            "genres": [_GENRES[place % len(_GENRES)]],
            "year": 2026 - place // NEW_MOVIES,
            "imdb_rating": round(9.1 - place * 0.2, 1),
            "new": place < NEW_MOVIES,
        }

    def _one_series(self, place: int) -> dict[str, Any]:
        title = _SERIES[place]
        return {
            "id": str(_id(title)),
            "url": f"{self.base}/fastapi/api/v1/series/{_id(title)}/",
            "title": title,
            "last_episode": {
                "season": 1 + place,
                "number": 4 + place,
                "title": _TITLES[place + NEW_MOVIES],
            },
        }


def _id(title: str) -> UUID:
    return uuid5(NAMESPACE_URL, title)
