"""M6: the statistics of a mailing equal its rows after kill -9 in expansion and settlement."""

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from deploy.local.database import Database
from tests.fakes.cohorts import FILL_CLIENTS
from tests.fakes.mailing import empty_mailings, fact
from tests.fakes.mailings_client import SHORT_QUEUES, MailingsClient, mailings_client
from tests.fakes.reconciliation import reconciled
from tests.fakes.service import running
from tests.fakes.waiting import until

SHORT_LEASES = ("-m", "tests.acceptance.short_lease_mailings")
CODES = ("900", "916", "999")
CLIENTS = 12_000
KINDS = ("sent", "failed", "expired")


async def report(client: MailingsClient, first: int, last: int) -> None:
    """Report these messages as sent, failed or expired, in batches of 50. Each fact comes twice."""
    bodies = [json.loads(message.body) for message in client.messages[first:last]]
    batches = []
    for start in range(0, len(bodies), 50):
        kind = KINDS[start // 50 % 3]
        facts = [
            fact(UUID(body["posting_id"]), 0, kind, "sms") | {"message_id": body["id"]}
            for body in bodies[start : start + 50]
        ]
        batches += [{"facts": facts}, {"facts": facts}]
    # At once, so that a kill can come in the middle.
    await asyncio.gather(
        *(client.post(batch, exchange="outcomes", type="Facts") for batch in batches)
    )


@pytest.mark.slow
async def test_m6_counts_equal_rows_after_two_kills(
    amqp_url: str, own_database: Database, tmp_path: Path
) -> None:
    await empty_mailings(own_database.url)
    database = await asyncpg.connect(own_database.url)
    size = CLIENTS // len(CODES)
    for n, code in enumerate(CODES):
        await database.execute(
            *(FILL_CLIENTS, n * size + 1, (n + 1) * size, code, "vip", "", "Europe/Moscow")
        )
    settings = {"RINGBACK_DATABASE_URL": own_database.url, **SHORT_QUEUES}
    mailing = {
        "text": "Hello",
        "end_at": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
    }
    async with mailings_client(amqp_url) as client:

        async def statistics() -> dict[str, Any]:
            found: dict[str, Any] = await client.request("GetMailingStatistics", id=id_)
            return found

        with running(tmp_path, amqp_url, settings, SHORT_LEASES) as service:
            await service.ready()
            client.hold_from = 1_000
            id_ = (await client.request("CreateMailing", mailing=mailing))["id"]
            await client.wait_for_users(1_000)
            await report(client, 0, 500)
            service.kill()
        await client.release(hold_from=3_000)
        with running(tmp_path, amqp_url, settings, SHORT_LEASES) as service:
            await client.wait_for_users(3_000)
            await report(client, 500, 1_000)
            service.kill()
        await client.release()
        with running(tmp_path, amqp_url, settings, SHORT_LEASES):
            await client.wait_for_users(CLIENTS)

            async def all_settled() -> bool:
                by_status = (await statistics())["by_status"]
                return bool(sum(by_status[kind] for kind in KINDS) == 1_000)

            await until(all_settled)
            found = await statistics()
            rows = await reconciled(database)
    await database.close()

    by_status, by_code = Counter[str](), Counter[str]()
    for (_, _, _, code, status, _), count in rows.items():
        by_status[status] += count
        by_code[code] += count
    assert Counter(found["by_status"]) == by_status
    assert by_status == {"created": CLIENTS - 1_000, "sent": 400, "failed": 300, "expired": 300}
    assert {each["operator_code"]: each["total"] for each in found["by_operator_code"]} == by_code
    assert found["by_reason"] == {"other": 300, "expired": 300}
    assert found["total"] == CLIENTS
