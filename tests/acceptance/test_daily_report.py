"""M12: the scheduler triggers the daily report, mailings renders it, and delivery sends it."""

import asyncio
import email
import email.policy
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from services.mailings.campaigns.partners import CLIENT_ID
from services.mailings.reports.schedule import GROUP, KEY
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_client import RpcClient
from shared.process.health import Health
from tests.fakes.command import ringback
from tests.fakes.mailing import RUN_MAILINGS
from tests.fakes.service import running
from tests.fakes.smtp import mail_server
from tests.fakes.system import fresh_database, system
from tests.fakes.waiting import until

TO = ("ann@example.com", "bob@example.com")


async def count_messages(url: str) -> None:
    """Count messages of a mailing, as sent yesterday and today."""
    connection = await asyncpg.connect(url)
    id_, now = uuid4(), datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    await connection.execute(
        "INSERT INTO mailings.mailings (id, client_id, fingerprint, channel, text,"
        " template_context, start_at, end_at, operator_codes, tags, status)"
        " VALUES ($1, 'shop', '', 'sms', 'Black Friday', '{}', now(), now() + interval '1 day',"
        " '{}', '{}', 'finished')",
        id_,
    )
    await connection.executemany(
        "INSERT INTO mailings.statistics VALUES ($1, $1, $2, '916', 'sent', '', 1234)",
        [(id_, now), (id_, now - timedelta(days=1))],
    )
    await connection.close()


@pytest.fixture
def url(database_url: str) -> Iterator[str]:
    with fresh_database(database_url) as fresh:
        yield fresh


@pytest.mark.slow
async def test_m12_the_report_is_sent_through_scheduler_and_delivery(
    amqp_url: str, url: str, tmp_path: Path
) -> None:
    client = RpcClient(amqp_url, name="test", health=Health())

    async def request(operation: str, **body: Any) -> Any:
        return await client.request(
            *("scheduler.requests", operation, json.dumps(body).encode()),
            context=RequestContext(CLIENT_ID),
            timeout=10,
        )

    async def schedule() -> dict[str, Any]:
        found = await request("GetCallback", group_key=GROUP, event_key=KEY)
        return found if isinstance(found, dict) else {}

    async with mail_server() as mails:
        settings = {
            "RINGBACK_SMTP_URL": mails.url(),
            "RINGBACK_MAIL_FROM": "reports@example.com",
            "RINGBACK_REPORT_TO": ", ".join(TO),
            "RINGBACK_REPORT_AT": "00:00",
        }
        names = ("scheduler", "mailings", "delivery")
        with system(tmp_path, amqp_url, url, *names, **settings) as services:
            await services.ready()
            await count_messages(url)
            connecting = asyncio.create_task(client.run())
            await client.ready()

            async def scheduled() -> bool:
                return bool(await schedule())

            await until(scheduled)
            first = await schedule()
            await request("RunCallback", id=first["id"])
            await until(lambda: len(mails.mails) == len(TO))
            printed = await ringback("report", amqp_url=amqp_url)
            empty = await ringback("report", "--date", "2026-01-31", amqp_url=amqp_url)
            data = await ringback("report", "--json", amqp_url=amqp_url)

            changed = settings | {"RINGBACK_DATABASE_URL": url, "RINGBACK_REPORT_AT": "09:30"}
            services["mailings"].kill()
            with running(tmp_path, amqp_url, changed, RUN_MAILINGS):

                async def rescheduled() -> bool:
                    return bool((await schedule()).get("context", {}).get("at") == "09:30")

                await until(rescheduled)
                second = await schedule()
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)

    parsed = [email.message_from_bytes(each, policy=email.policy.default) for each in mails.mails]
    assert {str(each["to"]) for each in parsed} == set(TO)
    for each in parsed:
        text, html = each.get_body(("plain",)), each.get_body(("html",))
        assert text is not None
        assert html is not None
        assert "1,234 messages of 1 mailing" in text.get_content()
        assert "Black Friday" in html.get_content()
        assert "<table" in html.get_content()
    assert printed.code == 0, printed.err
    assert "Black Friday" in printed.out
    assert data.code == 0, data.err
    counted = json.loads(data.out)
    assert (counted["mailings"], counted["total"], counted["timezone"]) == (1, 1234, "UTC")
    assert sum(counted["by_status"].values()) == 1234
    assert sum(hour["total"] for hour in counted["by_hour"]) == 1234
    assert "text" not in counted
    assert "No messages were created." in empty.out
    assert empty.out.startswith("Mailings on Saturday, 31 January 2026 (UTC)")
    assert first["context"] == {"at": "00:00", "timezone": "UTC"}
    assert (second["status"], second["run_at"][11:16]) == ("scheduled", "09:30")
