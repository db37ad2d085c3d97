"""The examples in the interface's descriptions; tests send each of them."""

from typing import Any, Final

from yarl import URL

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


# Of the sandbox: a user who has and wants everything, a new movie, a series.
USER: Final = "6b304b96-f986-4287-80c8-c62e0000000a"
USER_NAME: Final = "egor.lem.10@example.com"
MOVIE: Final = "d9a5e31e-3014-5024-bbc3-d43cb9b74ce9"
SERIES: Final = "d5648ecd-3ebe-5d57-9d47-0ca010f97390"

EVENT_ACCEPTED: Final = {"id": "3f1c0d9a7b5e4c2f8a6d1e0b9c7f5a3d"}
POSTING_ACCEPTED: Final = {"id": ID, "status": "accepted"}
POSTING_PROGRESS: Final = {
    "id": ID,
    "status": "sending",
    "reason": None,
    "from_event": "new-movies-2026-11-20",
    "template": "email/new_movies.md",
    "delivery_type": ["email"],
    "accepted_at": "2026-11-20T12:00:00Z",
    "expires_at": "2026-11-23T12:00:00Z",
    "pages": 4,
    "receivers": 1720,
    "messages": {"created": 120, "sent": 1500, "failed": 3, "expired": 0, "skipped": 97},
}
POSTING_STATUS: Final = POSTING_PROGRESS | {
    "skipped": {"no e-mail address": 31, "new_movies not wanted": 66},
}
POSTING_MESSAGE: Final = {
    "id": "0b0c3f0e-5d0b-5a50-9f5c-3b1c3a7b6f10",
    "user_id": USER,
    "channel": "email",
    "status": "sent",
    "why": None,
    "created_at": "2026-11-20T12:00:01Z",
    "settled_at": "2026-11-20T12:00:02Z",
}


def events(url: str) -> dict[str, Any]:
    """Events of the known producers; their URLs are those of the sandbox on the server of `url`."""
    there = _server(url)
    return {
        "A user signed up": {
            "from_service": "auth",
            "event": "user_signed_up",
            "details": {
                "username": USER_NAME,
                "user": f"{there}/auth/api/v1/users/{USER}/",
            },
        },
        "A new episode": {
            "from_service": "fastapi",
            "event": "new_episode",
            "details": {"series": [f"{there}/fastapi/api/v1/series/{SERIES}/"]},
        },
        "Reactions to a review": {
            "from_service": "activity_api",
            "event": "reactions_summary",
            "details": {
                "stats": [
                    {"type": "like", "total": 7, "target": f"{there}/activity_api/api/v1/reviews/7"}
                ]
            },
        },
        "New movies": {
            "from_service": "cinema_scanner",
            "event": "new_movies",
            "details": {"movies": [f"{there}/fastapi/api/v1/movies/{MOVIE}/"]},
        },
    }


def postings(url: str) -> dict[str, Any]:
    """Postings to users of the sandbox on the server of `url`."""
    users = f"{_server(url)}/auth/api/v1/users/"
    return {
        "A link to confirm an address": {
            "receivers": f"{users}?id={USER}",
            "template": "email/email_confirmation.md",
            "delivery_type": ["email"],
            "template_context": {"confirmation_link": "http://auth/abcDe4"},
        },
        "A code by SMS, for two minutes": {
            "receivers": f"{users}?id={USER}",
            "template": "sms/phone_confirmation.md",
            "delivery_type": ["sms"],
            "expires_in": "120 sec",
            "template_context": {"secret_code": "1234"},
        },
        "New movies, to all who want to know": {
            "from_event": "new-movies-2026-11-20",
            "receivers": f"{users}?is_active=True&email_notifications=True"
            "&page_number=1&page_size=500",
            "template": "email/new_movies.md",
            "delivery_type": ["email"],
            "expires_in": "3 days",
            "template_context": {"movies": f"{_server(url)}/fastapi/api/v1/movies/?new=True"},
        },
    }


def _server(url: str) -> str:
    return str(URL(url).origin())
