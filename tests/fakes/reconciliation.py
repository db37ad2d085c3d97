"""The messages of mailings, counted in their rows: what the statistics must say.

Clients whom expansion did not reach have no row. They are counted once, with a reason of their own.
"""

from collections import Counter
from typing import Any, Protocol

_ROWS = """
SELECT mailing_id, posting_id, date_trunc('hour', message.created_at, 'UTC') AS hour,
    operator_code, message.status, coalesce(reason_code, '') AS reason_code, count(*) AS count
FROM mailings.messages AS message JOIN mailings.postings ON postings.id = posting_id
WHERE mailing_id IS NOT NULL GROUP BY 1, 2, 3, 4, 5, 6
"""
_COUNTERS = "SELECT * FROM mailings.statistics WHERE count <> 0 AND reason_code <> 'not_reached'"
_POSTINGS = """
SELECT posting.id FROM mailings.postings AS posting,
    LATERAL (SELECT coalesce(not_reached, 0) AS rest) AS uncounted WHERE
    (created, sent, failed, expired, skipped, cancelled) <> (
        SELECT count(*) FILTER (WHERE status = 'created'),
            count(*) FILTER (WHERE status = 'sent'),
            count(*) FILTER (WHERE status = 'failed')
                + CASE ended WHEN 'failed' THEN rest ELSE 0 END,
            count(*) FILTER (WHERE status = 'expired')
                + CASE ended WHEN 'expired' THEN rest ELSE 0 END,
            count(*) FILTER (WHERE status = 'skipped'),
            count(*) FILTER (WHERE status = 'cancelled')
                + CASE ended WHEN 'cancelled' THEN rest ELSE 0 END
        FROM mailings.messages WHERE posting_id = posting.id
    )
    OR rest <> (
        SELECT coalesce(sum(count), 0) FROM mailings.statistics
        WHERE posting_id = posting.id AND reason_code = 'not_reached' AND status = ended
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
