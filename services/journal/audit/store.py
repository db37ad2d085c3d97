"""The audit log: the table `journal.audit`."""

from collections.abc import Mapping
from json import dumps, loads
from typing import Any, Final, Protocol

from services.journal.attempts.store import Place
from services.journal.reading import reading
from shared.amqp.rpc import RequestContext
from shared.contracts.journal import AuditEntry
from shared.contracts.journal_reads import ListAudit
from shared.postgres.pool import Database
from shared.postgres.queries import queries

SQL: Final = queries("services.journal", "audit.sql")


class Executor(Protocol):
    """The pool, or a connection with a transaction in progress."""

    async def execute(self, sql: str, *args: Any) -> str:
        """Execute a statement."""
        ...


async def record(  # noqa: PLR0913 - the fields of an action
    executor: Executor,
    context: RequestContext,
    action: str,
    *,
    object_: str | None = None,
    client_id: str | None = None,
    detail: Mapping[str, Any] | None = None,
    result: str = "done",
) -> None:
    """Record an action of the actor behind a request. A repeat of the request records it once.

    client_id: the client whose data it concerns; None means all clients or none.
    """
    key = None if context.message_id is None else f"{context.message_id}/{action}/{result}"
    text = dumps(detail or {}).replace("\\u0000", "\\ufffd")
    await executor.execute(
        SQL["record"], context.actor, client_id, action, object_, text, result, key
    )


async def page(
    database: Database, request: ListAudit, before: Place, limit: int
) -> list[tuple[Place, AuditEntry]]:
    """Return the actions before a position with their positions, the latest first."""
    async with reading(database) as connection:
        rows = await connection.fetch(
            SQL["page"],
            *(*before, limit, request.actor, request.action, request.client_id),
            *(request.since, request.until),
        )
    return [
        (
            (row["at"], row["id"]),
            AuditEntry(
                at=row["at"],
                actor=row["actor"],
                client_id=row["client_id"],
                action=row["action"],
                object=row["object"],
                detail=loads(row["detail"]),
                result=row["result"],
            ),
        )
        for row in rows
    ]
