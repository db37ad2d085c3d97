"""The output of `ringback posting show`."""

from typing import Any

import pytest

from services.cli.posting import progress_lines

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
    "skipped": {"no phone": 31, "new_movies not enabled": 68},
}


def test_e7_progress_has_numbers_and_bars() -> None:
    assert (
        "\n".join(progress_lines(STATUS))
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
  68 new_movies not enabled
  31 no phone"""
    )


@pytest.mark.parametrize("messages", [{}, {"sent": 0}])
def test_a_posting_without_messages_has_no_bars(messages: dict[str, int]) -> None:
    lines = list(progress_lines(STATUS | {"messages": messages, "skipped": {}}))
    assert lines[-5:] == ["created  0", "sent     0", "failed   0", "expired  0", "skipped  0"]


def test_the_reason_of_a_failed_posting_is_shown() -> None:
    lines = list(progress_lines(STATUS | {"status": "failed", "reason": "line 3: unexpected '}'"}))
    assert "reason:      line 3: unexpected '}'" in lines
