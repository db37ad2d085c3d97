"""Secrets in the scheduler's database: what is encrypted, and how keys are replaced."""

import base64
import json
import os
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from services.scheduler.intake import fingerprint
from services.scheduler.reseal import BATCH_SIZE
from shared.contracts.schedules import ScheduleCallback
from shared.postgres.pool import Database
from shared.security.encryption import SecretCipher
from tests.fakes.command import Output, ringback
from tests.fakes.journal import empty_journal
from tests.fakes.messenger import empty_subscriptions
from tests.fakes.scheduling import SECRETS_KEY, URL, Scheduler, connected, running

NEW_KEY = base64.b64encode(os.urandom(32)).decode()
BODY = {"url": URL, "hmac_secret": "weak", "delay": 3600}


@pytest.fixture
async def stored(database_url: str) -> AsyncIterator[Database]:
    await empty_subscriptions(database_url)  # their secrets are encrypted again, too
    await empty_journal(database_url)
    async with connected(database_url) as database:
        yield database


async def reseal(database_url: str, keys: str) -> Output:
    return await ringback(
        "secrets",
        "reseal",
        "--json",
        amqp_url=None,
        RINGBACK_DATABASE_URL=database_url,
        RINGBACK_SECRETS_KEY=keys,
    )


async def create(scheduler: Scheduler, key: str | None = None, **fields: Any) -> dict[str, Any]:
    async with running(scheduler):
        response: dict[str, Any] = await scheduler.request(
            "CreateCallback", idempotency_key=key, callback=BODY | fields
        )
    return response


async def test_finding_a16_no_stored_hash_confirms_a_guessed_secret(stored: Database) -> None:
    await create(Scheduler(stored, keys=SECRETS_KEY), "key")
    row = await stored.fetchrow("SELECT fingerprint FROM scheduler.callback_requests")
    guess = fingerprint(ScheduleCallback.model_validate_json(json.dumps(BODY)))
    assert guess not in row["fingerprint"]
    assert len(row["fingerprint"]) > len(guess)


async def test_finding_a16_a_repeat_is_recognised_after_the_key_was_replaced(
    stored: Database, database_url: str
) -> None:
    first = await create(Scheduler(stored, keys=SECRETS_KEY), "key")
    rotating = Scheduler(stored, keys=f"{NEW_KEY},{SECRETS_KEY}")
    assert (await create(rotating, "key"))["id"] == first["id"]
    assert (await reseal(database_url, f"{NEW_KEY},{SECRETS_KEY}")).code == 0
    rotated = Scheduler(stored, keys=NEW_KEY)
    assert (await create(rotated, "key"))["id"] == first["id"]
    assert (await create(rotated, "key", url=f"{URL}/other"))["code"] == "conflict"


async def test_finding_a16_without_its_key_a_repeat_is_a_conflict(stored: Database) -> None:
    await create(Scheduler(stored, keys=SECRETS_KEY), "key")
    unrelated = Scheduler(stored, keys=NEW_KEY)
    assert (await create(unrelated, "key"))["code"] == "conflict"


async def test_finding_a16_after_reseal_the_old_key_is_not_needed(
    stored: Database, database_url: str
) -> None:
    old = Scheduler(stored, keys=SECRETS_KEY)
    repeating = UUID((await create(old, repeat={"every": 60}))["id"])
    await stored.execute(
        "INSERT INTO scheduler.callback_requests"
        " SELECT (jsonb_populate_record(r, jsonb_build_object('id', gen_random_uuid()))).*"
        " FROM scheduler.callback_requests r, generate_series(1, $1)",
        BATCH_SIZE + 1,
    )
    keys = f"{NEW_KEY},{SECRETS_KEY}"
    new = UUID((await create(Scheduler(stored, keys=keys)))["id"])

    resealed = await reseal(database_url, keys)

    assert json.loads(resealed.out) == {
        "read": BATCH_SIZE + 3,
        "resealed": BATCH_SIZE + 2,
        "skipped": 0,
        "faults": {},
    }
    assert json.loads((await reseal(database_url, keys)).out)["resealed"] == 0
    rotated = Scheduler(stored, keys=NEW_KEY)
    await rotated.make_due(repeating, new)
    sent = await rotated.dispatch()
    assert [message["hmac_secret"] for message in sent] == ["weak", "weak"]


async def test_finding_a16_reseal_names_a_missing_key_and_changes_the_others(
    stored: Database, database_url: str
) -> None:
    lost = base64.b64encode(os.urandom(32)).decode()
    await create(Scheduler(stored, keys=lost))
    await create(Scheduler(stored, keys=SECRETS_KEY))
    result = await reseal(database_url, f"{NEW_KEY},{SECRETS_KEY}")
    counts = json.loads(result.out)
    assert (result.code, counts["resealed"]) == (1, 1)
    (fault,) = counts["faults"]
    assert SecretCipher.of(lost).prefix[1:].hex() in fault


async def test_finding_a16_reseal_waits_for_no_lock_of_a_scheduler(
    stored: Database, database_url: str
) -> None:
    await create(Scheduler(stored, keys=SECRETS_KEY))
    # Not of a pool, whose transactions end after ten idle seconds: a command can take longer.
    other = await asyncpg.connect(database_url)
    try:
        async with other.transaction():
            await other.execute("SELECT 1 FROM scheduler.callback_requests FOR UPDATE")
            result = await reseal(database_url, f"{NEW_KEY},{SECRETS_KEY}")
    finally:
        await other.close()
    counts = json.loads(result.out)
    assert (result.code, counts["resealed"], counts["skipped"]) == (1, 0, 1)
