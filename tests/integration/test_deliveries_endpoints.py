"""N1 to N5: deliveries to the endpoints of customers, and how they are settled."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from services.subscriptions.deliveries.domain import MAIN_DELAYS
from services.subscriptions.deliveries.store import NewDelivery, promote
from tests.fakes.deliveries import DISABLE_AFTER, SECRET, Engine, old_destination, running_engine

URL = "https://bot.example.com/hook"


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[Engine]:
    async with running_engine(database_url) as engine:
        yield engine


async def test_n2_each_attempt_is_kept_also_when_facts_overtake_each_other(engine: Engine) -> None:
    await engine.endpoint(URL)
    id_ = await engine.endpoint(URL)
    await engine.add(NewDelivery(id_, "a", payload="{}"))
    [sent] = await engine.dispatch()
    await engine.settle(sent.delivered(attempt=2))
    await engine.settle(sent.attempt_failed(), sent.attempt_failed())
    rows = await engine.database.fetch(
        "SELECT attempt, status_code, duration, error FROM subscriptions.attempts ORDER BY attempt"
    )
    assert [tuple(row) for row in rows] == [(1, 500, 0.2, "no"), (2, 200, 0.1, None)]
    [row] = await engine.rows()
    assert (row["status"], row["attempts"], row["last_error"]) == ("delivered", 2, None)


async def test_n2_a_failed_dispatch_shows_the_duration_of_its_last_attempt(engine: Engine) -> None:
    await engine.add(NewDelivery(await engine.endpoint(URL), "a", payload="{}"))
    [sent] = await engine.dispatch()
    await engine.settle(sent.failed())
    [row] = await engine.database.fetch("SELECT duration FROM subscriptions.attempts")
    assert row["duration"] == 0.3


async def test_facts_with_forged_numbers_do_not_prevent_the_settlement_of_others(
    engine: Engine,
) -> None:
    endpoint = await engine.endpoint("https://customer.example.com/")
    await engine.add(
        NewDelivery(endpoint, "a", payload="1"), NewDelivery(endpoint, "b", payload="1")
    )
    first, second = await engine.dispatch()
    forged = second.attempt_failed()
    await engine.settle(
        first.delivered(),
        forged.model_copy(update={"reference": "9" * 30}),
        forged.model_copy(update={"attempt": 1 << 40}),
    )
    assert await engine.statuses() == ["delivered", "dispatched"]


async def test_a_delivery_fails_after_its_main_retries(engine: Engine) -> None:
    id_ = await engine.endpoint(URL)
    await engine.add(NewDelivery(id_, "a", payload="{}"))
    for delay in MAIN_DELAYS:
        [sent] = await engine.dispatch()
        await engine.settle(sent.failed(retry_after=60.0))
        [row] = await engine.rows()
        now = (await engine.database.fetchrow("SELECT now() AS now"))["now"]
        assert row["status"] == "pending"
        assert timedelta(0) <= now + timedelta(seconds=delay) - row["due_at"] < timedelta(minutes=1)
        await engine.expire_leases()
    [sent] = await engine.dispatch()
    await engine.settle(sent.failed())
    assert await engine.statuses() == ["failed"]
    [row] = await engine.rows()
    assert row["attempts"] == 4 * (len(MAIN_DELAYS) + 1)


async def test_a_dispatch_that_expired_without_an_attempt_is_repeated_and_not_counted(
    engine: Engine,
) -> None:
    id_ = await engine.endpoint(URL)
    await engine.add(NewDelivery(id_, "a", payload="{}"))
    for _ in range(10):
        [sent] = await engine.dispatch()
        await engine.settle(sent.failed(attempt=0, status=None))
        await engine.expire_leases()
    [row] = await engine.rows()
    assert (row["status"], row["failures"]) == ("pending", 0)
    endpoint = await engine.database.fetchrow("SELECT failing_since FROM subscriptions.endpoints")
    assert endpoint["failing_since"] is None


async def test_n4_an_endpoint_is_disabled_when_it_fails_for_long_or_is_gone(engine: Engine) -> None:
    failing, gone = await engine.endpoint(URL), await engine.endpoint(URL)

    async def fail(**fields: Any) -> None:
        await engine.add(NewDelivery(failing, "a", payload="{}"))
        [sent] = await engine.dispatch()
        await engine.settle(sent.failed(**fields))
        await engine.settle(sent.failed(**fields))  # delivered again

    async def age() -> None:
        await engine.database.execute(
            "UPDATE subscriptions.endpoints SET failing_since = failing_since - $1::interval",
            timedelta(seconds=DISABLE_AFTER),
        )

    await fail()
    await engine.add(NewDelivery(failing, "b", payload="{}"))
    await age()
    [sent] = await engine.dispatch()
    await engine.settle(sent.delivered())  # begins anew
    await age()
    await fail()
    assert engine.disabled == []
    await age()
    await fail()
    assert engine.disabled == [failing]
    await engine.add(NewDelivery(gone, "a", payload="{}"))
    [sent] = await engine.dispatch()
    await engine.settle(sent.failed(attempt=1, status=410, final=True))
    assert engine.disabled == [failing, gone]


async def test_a_410_of_a_url_that_was_replaced_meanwhile_disables_nothing(engine: Engine) -> None:
    id_ = await engine.endpoint(URL)
    await engine.add(NewDelivery(id_, "a", payload="{}"), NewDelivery(id_, "b", payload="{}"))
    to_old, failed = await engine.dispatch()
    new = engine.cipher.encrypt(b"https://new.example.com/hook")
    await engine.database.execute("UPDATE subscriptions.endpoints SET url = $1", new)
    await engine.settle(to_old.failed(attempt=1, status=410, final=True))
    assert engine.disabled == []
    assert await engine.statuses() == ["failed", "dispatched"]
    await engine.settle(failed.failed())
    await engine.expire_leases()
    [to_new] = await engine.dispatch()
    await engine.settle(to_new.failed(attempt=1, status=410, final=True))
    assert engine.disabled == [id_]


async def test_a_disabled_endpoint_keeps_the_time_since_when_it_failed(engine: Engine) -> None:
    """Without it, the report cannot be made."""

    async def endpoint() -> tuple[str, bool]:
        row = await engine.database.fetchrow(
            "SELECT status, failing_since FROM subscriptions.endpoints"
        )
        return row["status"], row["failing_since"] is not None

    id_ = await engine.endpoint(URL)
    await engine.add(*(NewDelivery(id_, name, payload="{}") for name in "abc"))
    gone, same_batch, later = await engine.dispatch()
    await engine.settle(same_batch.delivered(), gone.failed(attempt=1, status=410, final=True))
    assert engine.disabled == [id_]
    assert await endpoint() == ("disabled", True)
    await engine.settle(later.delivered())
    assert await endpoint() == ("disabled", True)


async def test_n4_each_failed_attempt_counts_unless_a_success_was_later(engine: Engine) -> None:
    async def failing() -> bool:
        row = await engine.database.fetchrow("SELECT failing_since FROM subscriptions.endpoints")
        return row["failing_since"] is not None

    id_ = await engine.endpoint(URL)
    await engine.add(NewDelivery(id_, "a", payload="{}"))
    [sent] = await engine.dispatch()
    await engine.settle(sent.attempt_failed())
    assert await failing()
    await engine.settle(sent.delivered(2))
    assert not await failing()
    await engine.settle(sent.attempt_failed())  # overtaken by the success
    assert not await failing()


async def test_n4_a_claim_of_an_endpoint_that_is_not_active_follows_its_status(
    engine: Engine,
) -> None:
    for status, expected in (
        ("paused", "waiting"),
        ("disabled", "failed"),
        ("deleted", "cancelled"),
    ):
        id_ = await engine.endpoint(URL)
        await engine.add(NewDelivery(id_, status, payload="{}"))
        await engine.database.execute(
            "UPDATE subscriptions.endpoints SET status = $2 WHERE id = $1", id_, status
        )
        assert await engine.dispatch() == []
        assert (await engine.statuses())[-1] == expected


async def test_n1_both_secrets_sign_until_the_old_one_expires(engine: Engine) -> None:
    old = engine.cipher.encrypt(b"old")
    id_ = await engine.endpoint(URL, old_secret=old, headers=engine.cipher.encrypt(b'{"a":"b"}'))
    update = "UPDATE subscriptions.endpoints SET old_secret_until = now() + $1::interval"
    for seconds, secrets in ((60, [SECRET, "old"]), (-60, [SECRET])):
        await engine.database.execute(update, timedelta(seconds=seconds))
        await engine.add(NewDelivery(id_, "a", payload="[1, 2]"))
        [sent] = await engine.dispatch()
        assert sent.body["hmac_secret"] == secrets
        assert sent.body["headers"] == {"a": "b"}
        assert sent.body["client_id"] == "shop"
        assert sent.payload == [1, 2]


async def test_a_refused_publish_is_repeated_and_a_missing_key_blocks_only_its_own(
    engine: Engine,
) -> None:
    foreign = await engine.endpoint(URL, secret=b"\x01unknown key of a secret")
    id_ = await engine.endpoint(URL)
    await engine.add(*(NewDelivery(each, "a", payload="{}") for each in (foreign, id_)))
    engine.broker.refuses_all = True
    assert await engine.dispatch() == []
    assert await engine.statuses() == ["pending"] * 2
    engine.broker.refuses_all = False
    await engine.expire_leases()
    [_] = await engine.dispatch()
    assert await engine.statuses() == ["pending", "dispatched"]
    assert "is not configured" in (await engine.rows())[0]["last_error"]


async def test_a_url_that_was_replaced_has_no_effect_on_its_endpoint(engine: Engine) -> None:
    id_ = await engine.endpoint(URL)
    destination = old_destination("https://old.example.com/", engine.cipher)
    await engine.add(NewDelivery(id_, "a", payload="{}", destination=destination))
    [sent] = await engine.dispatch()
    assert sent.url == "https://old.example.com/"
    await engine.settle(sent.failed(attempt=1, status=410, final=True))
    assert engine.disabled == []


async def test_n5_what_waited_in_a_pause_is_in_order_if_the_endpoint_is_ordered_when_it_resumes(
    engine: Engine,
) -> None:
    id_ = await engine.endpoint(URL, status="paused")
    await engine.add(*(NewDelivery(id_, str(number), payload="{}") for number in range(3)))
    await engine.database.execute(
        "UPDATE subscriptions.endpoints SET status = 'active', ordered = true"
    )
    await promote(engine.database, [id_])
    for number in range(3):
        [sent] = await engine.dispatch()
        assert sent.body["id"] == str(number)
        await engine.settle(sent.delivered())
