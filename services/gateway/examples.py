"""Values that the examples of several routes share; tests send every example."""

from typing import Final

from yarl import URL

ID: Final = "5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11"
# Entries of the sandbox: a user who receives every kind of message, a new movie, a series.
USER: Final = "6b304b96-f986-4287-80c8-c62e0000000a"
USER_NAME: Final = "egor.lem.10@example.com"
MOVIE: Final = "d9a5e31e-3014-5024-bbc3-d43cb9b74ce9"
SERIES: Final = "d5648ecd-3ebe-5d57-9d47-0ca010f97390"


def server(url: str) -> str:
    """Return the scheme, host and port of this URL."""
    return str(URL(url).origin())
