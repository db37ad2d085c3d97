"""From facts to entries of the journal, and the figures of targets."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.journal.domain import MAX_AHEAD, Minute, rows
from services.journal.durations import BOUNDS, BUCKETS, MAX_DURATION, bucket, quantile
from services.journal.parsing import parse
from services.journal.targets import limit as target_limit
from services.journal.targets.limit import OTHER, TargetLimit
from shared.amqp.codec import Properties
from shared.contracts.facts import (
    CallbackAttemptFailed,
    CallbackDead,
    CallbackDelivered,
    CallbackDispatchFailed,
)
from tests.contract.test_contracts import FACTS as CALLBACK_FACTS
from tests.contract.test_journal_contracts import JOURNAL_FACTS, OTHERS
from tests.contract.test_message_contracts import FACTS as MESSAGE_FACTS

NOW = datetime(2026, 11, 20, 16, tzinfo=UTC)
RETENTION = timedelta(days=14)
ID = "0b0c3f0e-5d0b-4a50-9f5c-3b1c3a7b6f10"
FACT: dict[str, Any] = {
    "fact_id": "f",
    "at": NOW - timedelta(seconds=61),
    "callback_id": ID,
    "client_id": "shop",
    "target": "https://example.com:443",
    "attempt": 1,
    "trace_id": "t",
}


def entry(fact: Any) -> Any:
    [row] = rows([fact], now=NOW, retention=RETENTION).entries
    return row


def test_n6_an_attempt_is_recorded_with_its_outcome() -> None:
    delivered = entry(CallbackDelivered(**FACT, status=204, duration=0.2))
    failed = entry(CallbackAttemptFailed(**FACT, error="e", status=500, duration=0.1, next_at=NOW))
    dead = entry(CallbackDead(**FACT, reason="gone", status=410, duration=0.1))
    given_up = entry(CallbackDispatchFailed(**FACT, reason="r", final=False, duration=0.3))

    assert (delivered.kind, delivered.outcome) == ("attempt", "delivered")
    assert (delivered.status_code, delivered.duration, delivered.client_id) == (204, 0.2, "shop")
    assert (failed.kind, failed.outcome, failed.reason) == ("attempt", "failed", "e")
    assert (failed.next_at, failed.trace_id) == (NOW, "t")
    assert (dead.kind, dead.outcome, dead.status_code) == ("attempt", "dead", 410)
    assert (given_up.kind, given_up.outcome) == ("attempt", "dispatch_failed")


def test_n6_what_ended_without_an_attempt_is_not_recorded_as_one() -> None:
    dead = entry(CallbackDead(**FACT, reason="payload: Field required"))
    expired = entry(CallbackDispatchFailed(**FACT, reason="expired", final=False))
    assert (dead.kind, dead.outcome) == ("dead", None)
    assert (expired.kind, expired.outcome) == ("dispatch_failed", None)


@pytest.mark.parametrize(
    ("callback_id", "owner", "expected"),
    [
        (ID, "scheduler", UUID(ID)),
        (f"{ID}.17", "scheduler", UUID(ID)),
        (ID, None, None),
        (ID, "subscriptions", None),
        ("forged", "scheduler", None),
    ],
)
def test_n6_the_scheduled_callback_behind_an_attempt_is_known(
    callback_id: str, owner: str | None, expected: UUID | None
) -> None:
    fact = FACT | {"callback_id": callback_id, "owner": owner}
    assert entry(CallbackDelivered(**fact, status=200, duration=0.1)).schedule_id == expected


def test_s9_anonymous_callbacks_and_messages_without_a_client_differ() -> None:
    anonymous = CallbackDelivered(**FACT | {"client_id": None}, status=200, duration=0.1)
    assert entry(anonymous).client_id == ""
    assert entry(MESSAGE_FACTS[0]).client_id is None


def test_n6_every_fact_has_an_entry_or_a_table_of_its_own() -> None:
    every = (*CALLBACK_FACTS, *MESSAGE_FACTS, *JOURNAL_FACTS, *OTHERS)
    without = {
        str(fact.type) for fact in every if not rows([fact], now=NOW, retention=RETENTION).entries
    }
    targets = {"target.breaker_opened", "target.breaker_closed", "target.lane_full"}
    assert without == {"letter.dead"} | targets


def test_n6_facts_older_than_the_retention_are_counted_and_those_of_the_future_are_from_now() -> (
    None
):
    old = CallbackDelivered(
        **FACT | {"at": NOW - RETENTION - timedelta(seconds=1)}, status=200, duration=0.1
    )
    ahead = CallbackDelivered(
        **FACT | {"at": NOW + MAX_AHEAD + timedelta(days=300)}, status=200, duration=0.1
    )
    found = rows([old, ahead], now=NOW, retention=RETENTION)
    assert found.expired == 1
    assert [row.at for row in found.entries] == [NOW]


def test_n6_texts_that_postgresql_cannot_store_are_changed() -> None:
    fact = CallbackDead(**FACT, reason="a\0b")
    assert entry(fact).reason == "a\N{REPLACEMENT CHARACTER}b"
    owned = CallbackDead(**FACT | {"reference": "\0"}, reason="r")
    assert "u0000" not in entry(owned).detail


def test_n8_attempts_are_counted_per_target_client_and_minute() -> None:
    delivered = [
        CallbackDelivered(**FACT, status=200, duration=duration) for duration in (0.004, 0.2)
    ]
    failed = CallbackAttemptFailed(**FACT, error="e", duration=0.2, next_at=NOW)
    other = CallbackDelivered(**FACT | {"client_id": None}, status=200, duration=0.1)

    minutes = rows([*delivered, failed, other], now=NOW, retention=RETENTION).minutes

    minute = datetime(2026, 11, 20, 15, 58, tzinfo=UTC)
    shop = minutes["https://example.com:443", "shop", minute]
    assert (shop.delivered, shop.failed) == (2, 1)
    assert shop.buckets[bucket(0.004)] == 1
    assert shop.buckets[bucket(0.2)] == 2
    assert minutes["https://example.com:443", "", minute].delivered == 1


def test_n7_a_kept_request_is_stored_once_decoded() -> None:
    fact = CallbackDead(**FACT, reason="r", request="c2VhbGVk")
    damaged = CallbackDead(**FACT, reason="r", request="???")
    found = rows([fact, damaged], now=NOW, retention=RETENTION)
    assert [(row.callback_id, row.client_id, row.sealed) for row in found.requests] == [
        (ID, "shop", b"sealed")
    ]


@given(st.lists(st.floats(0.0005, 299), min_size=1, max_size=300), st.sampled_from([0.5, 0.99]))
def test_n8_a_quantile_is_in_the_bucket_of_the_true_one(
    durations: list[float], fraction: float
) -> None:
    counts = [0] * BUCKETS
    for duration in durations:
        counts[bucket(duration)] += 1
    rank = max(-(-len(durations) * fraction // 1), 1)
    true = sorted(durations)[int(rank) - 1]
    found = quantile(counts, fraction)
    assert found is not None
    place = bucket(true)
    low = BOUNDS[place - 1] if place else 0.0
    high = BOUNDS[place] if place < len(BOUNDS) else MAX_DURATION
    assert low <= found <= high


def test_n8_there_is_no_quantile_without_attempts() -> None:
    assert quantile([0] * BUCKETS, 0.5) is None


def test_n12_an_unknown_fact_does_not_stop_the_others() -> None:
    known = CallbackDelivered(**FACT, status=200, duration=0.1)
    body = (
        f'{{"facts": [{known.model_dump_json()}, {{"type": "callback.later", "x": 1}},'
        ' {"type": "callback.delivered"}, 7]}'
    )
    parsed = parse(Properties(type="Facts"), body.encode())
    assert parsed.facts == [known]
    assert (parsed.unknown, parsed.invalid) == (2, 1)


@pytest.mark.parametrize("body", [b"", b"7", b'{"facts": 7}', b"{}", b"\xff"])
def test_n6_a_message_that_is_not_valid_is_counted(body: bytes) -> None:
    assert parse(Properties(type="Facts"), body).invalid == 1
    assert parse(Properties(type="SendCallback"), body).invalid == 1


def test_a14_the_figures_of_a_client_name_a_limited_number_of_targets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With wildcard DNS, each callback can have a host of its own."""
    monkeypatch.setattr(target_limit, "MAX_TARGETS", 3)
    limit, hour = TargetLimit(), NOW.replace(minute=0)

    def figures(names: range, client_id: str, minute: datetime) -> dict[tuple[str, str], int]:
        minutes = {
            (f"https://h{number}:443", client_id, minute): Minute(delivered=1, failed=number)
            for number in names
        }
        return {
            (target, client): minute.delivered + minute.failed
            for (target, client, _), minute in limit.limited(minutes).items()
        }

    assert figures(range(2), "shop", hour) == {
        ("https://h0:443", "shop"): 1,
        ("https://h1:443", "shop"): 2,
    }
    assert figures(range(5), "shop", hour + timedelta(minutes=7)) == {
        ("https://h0:443", "shop"): 1,
        ("https://h1:443", "shop"): 2,
        ("https://h2:443", "shop"): 3,
        (OTHER, "shop"): 9,
    }
    assert len(figures(range(3), "bank", hour)) == 3
    assert len(figures(range(5, 8), "shop", hour + timedelta(hours=1))) == 3
