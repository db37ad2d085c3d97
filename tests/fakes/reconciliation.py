"""The messages of mailings, counted in their rows: what the statistics must say."""

from collections import Counter
from typing import Any, Protocol

_ROWS = """
SELECT mailing_id, posting_id, date_trunc('hour', message.created_at, 'UTC') AS hour,
    operator_code, message.status, coalesce(reason_code, '') AS reason_code, count(*) AS count
FROM mailings.messages AS message JOIN mailings.postings ON postings.id = posting_id
WHERE mailing_id IS NOT NULL GROUP BY 1, 2, 3, 4, 5, 6
"""
_COUNTERS = "SELECT * FROM mailings.statistics WHERE count <> 0"
_POSTINGS = """
SELECT posting.id FROM mailings.postings AS posting WHERE
    (created, sent, failed, expired, skipped, cancelled) <> (
        SELECT count(*) FILTER (WHERE status = 'created'),
            count(*) FILTER (WHERE status = 'sent'), count(*) FILTER (WHERE status = 'failed'),
            count(*) FILTER (WHERE status = 'expired'),
            count(*) FILTER (WHERE status = 'skipped'),
            count(*) FILTER (WHERE status = 'cancelled')
        FROM mailings.messages WHERE posting_id = posting.id
    )
"""


class Fetching(Protocol):
    """A connection to the database."""

    async def fetch(self, sql: str) -> list[Any]:
        """Return the rows of a query."""
        ...


async def reconciled(database: Fetching) -> Counter[tuple[Any, ...]]:
    """Check all counters against the rows of messages, and return the counts.

    Their keys are mailing, posting, hour, operator code, status and reason code.
    """
    rows, counters = [
        Counter({tuple(row.values())[:-1]: row["count"] for row in await database.fetch(sql)})
        for sql in (_ROWS, _COUNTERS)
    ]
    assert counters == rows
    assert not await database.fetch(_POSTINGS), "the counters of a posting differ"
    return rows
