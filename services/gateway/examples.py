"""Callbacks and values for the examples of routes; tests send every example."""

from typing import Any, Final

from yarl import URL

ID: Final = "5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11"
# Entries of the sandbox: a user who receives every kind of message, a new movie, a series.
USER: Final = "6b304b96-f986-4287-80c8-c62e0000000a"
USER_NAME: Final = "egor.lem.10@sandbox.invalid"
MOVIE: Final = "d9a5e31e-3014-5024-bbc3-d43cb9b74ce9"
SERIES: Final = "d5648ecd-3ebe-5d57-9d47-0ca010f97390"
RUN_AT: Final = "2030-01-01T12:00:00Z"
# The secret that a webhook inbox of the sandbox checks by default.
_SECRET: Final = "your-secret-key"  # noqa: S105 - public


def server(url: str) -> str:
    """Return the scheme, host and port of this URL."""
    return str(URL(url).origin())


def callbacks(url: str) -> dict[str, Any]:
    """Return callbacks to `url`, by the feature that they show."""
    return {
        "In ten seconds": {
            "url": url,
            "delay": 10,
            "group_key": "user-7",
            "hmac_secret": _SECRET,
            "context": {"text": "Hello from Ringback."},
        },
        "At a given time, with your own keys": {
            "url": url,
            "run_at": RUN_AT,
            "group_key": "user-7",
            "event_key": "reminder-1",
            "hmac_secret": _SECRET,
            "context": {"text": "Your trial ends tomorrow."},
        },
        "With a retry policy, and the context as the body": {
            "url": url,
            "delay": 10,
            "hmac_secret": _SECRET,
            "context": {"text": "Again and again."},
            "notify_scheme": {"transport": "http", "method": "POST", "format": "context"},
            "retry_params": {
                "stop_after_delay": 86400,
                "quick_retries_count": 3,
                "strategy": "exponential",
                "base_delay": 60,
                "delay_growth_rate": 2,
            },
        },
        "Every weekday at nine in Berlin": {
            "url": url,
            "group_key": "reports",
            "hmac_secret": _SECRET,
            "repeat": {"cron": "0 9 * * 1-5", "timezone": "Europe/Berlin", "count": 10},
        },
    }


def batch(url: str) -> dict[str, Any]:
    """Return a batch of two callbacks to `url`."""
    return {
        "callbacks": [
            {
                "url": url,
                "delay": 10,
                "group_key": "user-8",
                "hmac_secret": _SECRET,
                "context": {"number": number},
            }
            for number in (1, 2)
        ]
    }
