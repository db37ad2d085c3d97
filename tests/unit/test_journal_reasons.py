"""Dead letters with the same cause form one group."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.journal.dead.reasons import MAX_KEY, reason_key

# Three times what the slowest of these takes on a busy machine.
MAX_SECONDS = 0.003


@pytest.mark.parametrize(
    ("reason", "key"),
    [
        (
            "gave up after 5 attempts in 86400 s: the receiver responded with 503",
            "gave up after # attempts in # s: the receiver responded with 503",
        ),
        ("gave up after 1 attempt: timeout", "gave up after # attempts: timeout"),
        (
            "type is 'SendCallbak', not 'SendCallback'",
            "type is '…', not '…'",
        ),
        ("https://example.com:443: no response in 10.0 s", "URL: no response in # s"),
        ("10.0.0.1: a private address", "#: a private address"),
        ("message 5f0c7b1e-8d0f-4f6e-9b61-6f6d6d0a4c11 is unknown", "message # is unknown"),
        ("the broker's queue isn't there", "the broker's queue isn't there"),
        ("payload.items.17.id: Field required", "payload.items.#.id: Field required"),
        ("line one\n  line two\0", "line one line two\N{REPLACEMENT CHARACTER}"),
        ("", ""),
    ],
)
def test_n7_numbers_and_names_do_not_make_a_group(reason: str, key: str) -> None:
    assert reason_key(reason) == key


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_n7_a_status_makes_a_group(status: int) -> None:
    assert str(status) in reason_key(f"the receiver responded with {status}")


@given(st.text(max_size=2000))
def test_n7_any_reason_has_a_short_key(reason: str) -> None:
    key = reason_key(reason)
    assert len(key) <= MAX_KEY
    assert "\0" not in key


@pytest.mark.parametrize(
    "reason",
    [
        *("a-" * 500, "0-" * 500, "1." * 500, "x://" * 250, "'" * 1000, "' " * 500, "\"'" * 500),
        *(
            "a" * 1000,
            "a1" * 500,
            "deadbeef-" * 111,
            "abcdefgh" * 125,
            "http://a" * 125,
            " " * 1000,
        ),
        *(
            "a.b-c+d" * 142,
            "a://b:;,." * 111,
            "f" * 999 + "g",
            "1" + "f" * 30 + "g",
            "1" + "f" * 990 + "g",
            "a-b-" * 250,
            "status " * 142,
        ),
    ],
)
def test_a19_no_reason_takes_long(reason: str) -> None:
    """A client writes reasons into the facts of a batch of 5,000."""
    started = time.process_time()
    for _ in range(20):
        reason_key(reason)
    assert time.process_time() - started < 20 * MAX_SECONDS
