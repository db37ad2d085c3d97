"""The audit log: the table `journal.audit`. All methods raise StoreConnectionLostError."""

from collections.abc import Mapping
from json import dumps, loads
from typing import Any, Final

from services.journal.attempts.store import Place
from services.journal.reading import reading
from shared.amqp.rpc import RequestContext
from shared.contracts.journal import AuditEntry
from shared.contracts.journal_reads import ListAudit
from shared.postgres.pool import Database
from shared.postgres.queries import queries

SQL: Final = queries("services.journal", "audit.sql")


class Audit:
    """The actions of people and clients. Rows are only added."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(  # noqa: PLR0913 - the fields of an action
        self,
        context: RequestContext,
        action: str,
        *,
        object_: str | None = None,
        client_id: str | None = None,
        detail: Mapping[str, Any] | None = None,
        result: str = "done",
        connection: Any = None,
    ) -> None:
        """Record an action of the actor behind a request. A repeat of it is recorded once.

        client_id: the client whose data it concerns, if it concerns one.
        connection: the connection of a transaction that the record belongs to.
        """
        key = None if context.message_id is None else f"{context.message_id}/{action}/{result}"
        text = dumps(detail or {}).replace("\\u0000", "\\ufffd")
        await (connection or self._database).execute(
            SQL["record"], context.actor, client_id, action, object_, text, result, key
        )

    async def page(
        self, request: ListAudit, before: Place, limit: int
    ) -> list[tuple[Place, AuditEntry]]:
        """Return the actions before a position with their positions, the latest first."""
        async with reading(self._database) as connection:
            rows = await connection.fetch(
                SQL["page"],
                *(*before, limit, request.actor, request.action, request.client_id),
                *(request.since, request.until),
            )
        return [((row["at"], row["id"]), _entry(row)) for row in rows]


def _entry(row: Any) -> AuditEntry:
    return AuditEntry(
        at=row["at"],
        actor=row["actor"],
        client_id=row["client_id"],
        action=row["action"],
        object=row["object"],
        detail=loads(row["detail"]),
        result=row["result"],
    )
