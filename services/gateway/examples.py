"""The examples in the interface's descriptions; tests send each of them."""

from typing import Any, Final

ID: Final = "5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11"
RUN_AT: Final = "2030-01-01T12:00:00Z"
LATER: Final = "2030-01-02T12:00:00Z"
# The secret that a mailbox of the sandbox checks unless told otherwise.
SECRET: Final = "your-secret-key"  # noqa: S105 - public
CREATED: Final = {"id": ID, "status": "scheduled", "run_at": RUN_AT}
CREATED_BATCH: Final = {
    "items": [
        CREATED,
        {
            "error": {
                "code": "invalid",
                "detail": "1 field is wrong",
                "errors": [{"field": "url", "message": "Field required"}],
            }
        },
    ]
}
STATUS: Final = {
    "id": ID,
    "status": "scheduled",
    "run_at": RUN_AT,
    "next_at": RUN_AT,
    "attempts": 0,
    "last_error": None,
    "group_key": "user-7",
    "event_key": "reminder-1",
    "context": {"text": "Your trial ends tomorrow."},
    "occurrence": None,
    "created_at": "2026-11-21T12:00:00Z",
    "finished_at": None,
}


def callbacks(url: str) -> dict[str, Any]:
    """Callbacks to schedule, by what they show; each calls `url`."""
    return {
        "In ten seconds": {
            "url": url,
            "delay": 10,
            "group_key": "user-7",
            "hmac_secret": SECRET,
            "context": {"text": "Hello from Ringback."},
        },
        "At a moment, under your own keys": {
            "url": url,
            "run_at": RUN_AT,
            "group_key": "user-7",
            "event_key": "reminder-1",
            "hmac_secret": SECRET,
            "context": {"text": "Your trial ends tomorrow."},
        },
        "With your own retries, the context alone": {
            "url": url,
            "delay": 10,
            "hmac_secret": SECRET,
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
            "hmac_secret": SECRET,
            "repeat": {"cron": "0 9 * * 1-5", "timezone": "Europe/Berlin", "count": 10},
        },
    }


def batch(url: str) -> dict[str, Any]:
    """A batch of two."""
    return {
        "callbacks": [
            {
                "url": url,
                "delay": 10,
                "group_key": "user-8",
                "hmac_secret": SECRET,
                "context": {"number": number},
            }
            for number in (1, 2)
        ]
    }
