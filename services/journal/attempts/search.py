"""From a search to the index that answers it: pure functions, no IO."""

from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

from services.journal.scope import origin_of
from shared.contracts.journal_reads import ListAttempts
from shared.pagination import END, START

# Everything in the journal is between these positions.
FIRST: Final = START[0]
LAST: Final = END[0]
# The sequence of the position before a time: entries count from 1.
BEFORE: Final = 0
# The largest sequence.
AFTER: Final = (1 << 63) - 1
# The value of the filter `status` for every outcome but `delivered`.
FAILED: Final = "failed"


@dataclass(frozen=True, slots=True)
class Search:
    """A search for attempts. `client_id` is '' for the anonymous client, None for all.

    failed: only attempts that were not delivered.
    """

    client_id: str | None = None
    target: str | None = None
    outcome: str | None = None
    failed: bool = False
    status_code: int | None = None
    reason: str | None = None
    trace_id: str | None = None
    group_key: str | None = None
    event_key: str | None = None
    since: datetime = FIRST
    until: datetime = LAST

    @property
    def filters(self) -> tuple[Any, ...]:
        """Return the parameters of the filters, in the order of the queries."""
        return (
            *(self.client_id, self.target, self.outcome, self.failed),
            *(self.status_code, self.reason, self.trace_id),
        )


def search_of(request: ListAttempts, client_id: str | None) -> Search:
    """Return the search of a request. `client_id` is the only client that it may see, or None."""
    status = request.status
    code = int(status) if status is not None and status.isdigit() else None
    outcome = None if code is not None or status == FAILED else status
    return Search(
        client_id=client_id,
        target=None if request.target is None else origin_of(request.target),
        outcome=outcome,
        # What was delivered has a status below 300, and no reason.
        failed=status == FAILED
        or (code is not None and code >= HTTPStatus.MULTIPLE_CHOICES)
        or request.reason is not None,
        status_code=code,
        reason=request.reason,
        trace_id=request.trace_id,
        group_key=request.group_key,
        event_key=request.event_key,
        since=request.since or FIRST,
        until=request.until or LAST,
    )


def driven(sql: str, search: Search) -> tuple[str, tuple[Any, ...]]:
    """Return the query that reads the index with the fewest entries, and its last parameters."""
    failed = search.failed or search.outcome not in (None, "delivered")
    column, value = None, None
    if search.trace_id is not None:
        column, value, failed = "trace_id", search.trace_id, False
    elif search.target is not None:
        column, value = "target", search.target
    elif search.client_id is not None:
        column, value = "client_id", search.client_id
    where = " AND outcome <> 'delivered'" if failed else ""
    if column is None:
        return sql.format(key="", value="", order="", where=where), ()
    if not failed:
        where = f" AND {column} IS NOT NULL"
    # The names are from this function; values are parameters.
    query = sql.format(key=f"{column}, ", value="$13, ", order=f"{column} DESC, ", where=where)
    return query, (value,)


@dataclass(frozen=True, slots=True)
class Reference:
    """A callback by one of its ids: the `webhook-id`, or the id of the scheduled callback."""

    callback_id: str
    schedule_id: UUID | None = None
    occurrence: int | None = None


def reference(id_: str) -> Reference:
    """Return what an id can refer to. The `webhook-id` of an occurrence is `UUID.NUMBER`."""
    head, dot, number = id_.partition(".")
    try:
        schedule_id = UUID(head)
    except ValueError:
        return Reference(id_)
    if not dot:
        return Reference(id_, schedule_id)
    if number.isascii() and number.isdigit() and len(number) < len("1000000000"):
        return Reference(id_, schedule_id, int(number))
    return Reference(id_)
