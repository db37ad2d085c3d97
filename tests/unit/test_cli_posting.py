"""How `ringback posting show` pictures progress."""

from typing import Any

import pytest

from services.cli.posting import picture

STATUS: dict[str, Any] = {
    "id": "5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11",
    "status": "sending",
    "reason": None,
    "from_event": "scan-7",
    "template": "email/new_movies.md",
    "delivery_type": ["email", "sms"],
    "accepted_at": "2026-11-20T12:00:00Z",
    "expires_at": None,
    "pages": 4,
    "receivers": 1720,
    "messages": {"created": 200, "sent": 700, "failed": 1, "skipped": 99},
    "skipped": {"has no phone": 31, "does not want new_movies": 68},
}


def test_e7_progress_is_told_in_numbers_and_bars() -> None:
    assert (
        "\n".join(picture(STATUS))
        == """\
id:          5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11
status:      sending
from_event:  scan-7
template:    email/new_movies.md, by email and sms
accepted_at: 2026-11-20T12:00:00Z
receivers:   1720 on 4 pages

created  200  ########
sent     700  ############################
failed     1  #
expired    0
skipped   99  ###
  68 does not want new_movies
  31 has no phone"""
    )


@pytest.mark.parametrize("messages", [{}, {"sent": 0}])
def test_before_the_first_message_nothing_is_divided_by_nothing(messages: dict[str, int]) -> None:
    lines = list(picture(STATUS | {"messages": messages, "skipped": {}}))
    assert lines[-5:] == ["created  0", "sent     0", "failed   0", "expired  0", "skipped  0"]


def test_why_a_posting_failed_is_told() -> None:
    lines = list(picture(STATUS | {"status": "failed", "reason": "line 3: unexpected '}'"}))
    assert "reason:      line 3: unexpected '}'" in lines
