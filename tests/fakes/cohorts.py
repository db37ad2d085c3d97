"""Mailings and clients as rows of the database, for tests of expansion."""

from datetime import UTC, datetime, time, timedelta
from typing import Any
from uuid import UUID, uuid4

from services.mailings.campaigns.domain import cohort_id
from shared.contracts.messages import SendSms
from tests.fakes.mailing import Mailings

FILL_CLIENTS = """
INSERT INTO mailings.clients (id, client_id, phone, operator_code, tag, timezone)
SELECT ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, $5, '7' || 9000000000 + n,
    $3, $4, $6
FROM generate_series($1::bigint, $2::bigint) AS n
"""
_MAILING = """
INSERT INTO mailings.mailings (id, client_id, fingerprint, channel, text, template_context,
    start_at, end_at, operator_codes, tags, local_from, local_to, rate_per_minute, status)
VALUES ($1, $2, '', 'sms', $3, '{}', now(), $4, $5, $6, $7, $8, $9, 'running')
"""
_COHORT = """
INSERT INTO mailings.postings (id, client_id, mailing_id, timezone, priority, expires_at, is_list)
VALUES ($1, $2, $3, $4, 'bulk', $5, true)
"""


async def add_clients(  # noqa: PLR0913 - each is a column
    mailings: Mailings,
    first: int,
    last: int,
    *,
    operator_code: str = "900",
    tag: str | None = "vip",
    owner: str = "",
    timezone: str = "Europe/Moscow",
) -> None:
    """Add clients with consecutive numbers. Their ids are ordered like their numbers."""
    await mailings.database.execute(FILL_CLIENTS, first, last, operator_code, tag, owner, timezone)


def client_id(number: int) -> str:
    """Return the id of the client with a number."""
    return f"00000000-0000-7000-8000-{number:012x}"


async def start_mailing(  # noqa: PLR0913 - each is a column
    mailings: Mailings,
    text: str = "Hello",
    *,
    zones: tuple[str | None, ...] = (None,),
    owner: str = "",
    end_at: datetime | None = None,
    operator_codes: tuple[str, ...] = (),
    tags: tuple[str, ...] = (),
    hours: tuple[time, time] | tuple[None, None] = (None, None),
    rate: int | None = None,
) -> UUID:
    """Start a mailing with a cohort for each zone, and return its id."""
    id_, end_at = uuid4(), end_at or datetime.now(UTC) + timedelta(days=7)
    await mailings.database.execute(
        *(_MAILING, id_, owner, text, end_at, operator_codes, tags, *hours, rate)
    )
    for zone in zones:
        await mailings.database.execute(_COHORT, cohort_id(id_, zone), owner, id_, zone, end_at)
    return id_


async def statuses(mailings: Mailings, mailing_id: UUID) -> dict[str, int]:
    """Return the number of messages of a mailing by status, counted in its rows."""
    rows = await mailings.database.fetch(
        "SELECT status, count(*) AS count FROM mailings.messages WHERE posting_id IN"
        " (SELECT id FROM mailings.postings WHERE mailing_id = $1) GROUP BY status",
        mailing_id,
    )
    return {row["status"]: row["count"] for row in rows}


def sent(mailings: Mailings) -> list[SendSms]:
    """Return the published messages."""
    return [SendSms.model_validate_json(message.body) for message in mailings.broker.sent]


def recipients(mailings: Mailings) -> list[str]:
    """Return the recipients of the published messages, in their order."""
    return [str(message.recipient_id) for message in sent(mailings)]


async def row(mailings: Mailings, mailing: UUID, zone: str | None = None) -> Any:
    """Return the row of a cohort."""
    return await mailings.database.fetchrow(
        "SELECT * FROM mailings.postings WHERE id = $1", cohort_id(mailing, zone)
    )
