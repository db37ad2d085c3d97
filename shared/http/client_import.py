"""Imports clients: streams lines to mailings in batches, for the gateway and the console.

Memory holds a few batches and the first errors, however long the file is, and a slow database slows
the sender. A batch waits for those before it with the same phone, so the last line of a phone wins.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from typing import Any, Final

from pydantic_core import to_json

from shared.amqp.rpc import RequestContext
from shared.contracts.client_requests import IMPORT_CLIENTS, MAX_IMPORT_SIZE
from shared.contracts.clients import NewClient
from shared.contracts.requests import FieldError
from shared.http.problem import ProblemError
from shared.http.service_client import ServiceClient
from shared.importing import InvalidLineError, LineParser, Lines, csv_parser, parse_json

COLUMNS: Final = tuple(NewClient.model_fields)
MANDATORY: Final = tuple(
    name for name, field in NewClient.model_fields.items() if field.is_required()
)
# Lines in the list of errors; `failed` counts all.
MAX_ERRORS: Final = 1000
# Batches that wait for a response. So the sender, mailings and PostgreSQL work at the same time.
MAX_IN_FLIGHT: Final = 2


class _Import:
    """An import in progress. `close` ends it."""

    def __init__(self, services: ServiceClient, context: RequestContext) -> None:
        self._services = services
        self._context = context
        self._batch: list[dict[str, Any]] = []
        self._counts = {"created": 0, "updated": 0, "failed": 0}
        self._errors: list[dict[str, Any]] = []
        # The requests in flight, in order, with the phones of their lines.
        self._sent: deque[tuple[asyncio.Task[Any], set[str]]] = deque()

    @property
    def report(self) -> dict[str, Any]:
        """Return the result, with the errors in the order of their lines."""
        return {**self._counts, "errors": sorted(self._errors, key=lambda each: each["line"])}

    @property
    def imported(self) -> int:
        """Return the number of imported lines."""
        return self._counts["created"] + self._counts["updated"]

    def reject(self, number: int, reason: str) -> None:
        """Count a line that is not valid."""
        self._counts["failed"] += 1
        self._keep_error({"line": number, "reason": reason})

    def add(self, number: int, client: Any) -> None:
        """Add a line to the batch."""
        self._batch.append({"line": number, "client": client})

    @property
    def is_full(self) -> bool:
        """Return whether the batch must be sent before another line is added."""
        return len(self._batch) == MAX_IMPORT_SIZE

    async def send(self) -> None:
        """Send the batch, and begin another."""
        if not self._batch:
            return
        phones = {str(line["client"].get("phone")) for line in self._batch}
        while len(self._sent) == MAX_IN_FLIGHT or any(phones & others for _, others in self._sent):
            await self._receive()
        request = self._services.request(
            IMPORT_CLIENTS, to_json({"lines": self._batch}), self._context
        )
        self._batch = []
        self._sent.append((asyncio.create_task(request), phones))

    async def finish(self) -> None:
        """Send the last batch, and wait for all responses."""
        await self.send()
        while self._sent:
            await self._receive()

    async def settle(self) -> bool:
        """After a failure, wait for the other responses; return whether no line was imported."""
        nothing_else = True
        while self._sent:
            try:
                await self._receive()
            except ProblemError as problem:
                nothing_else &= problem.status is HTTPStatus.SERVICE_UNAVAILABLE
        return nothing_else and not self.imported

    async def close(self) -> None:
        """Cancel the requests in flight."""
        for task, _ in self._sent:
            task.cancel()
        await asyncio.gather(*(task for task, _ in self._sent), return_exceptions=True)

    async def _receive(self) -> None:
        """Wait for the oldest response, and count its lines."""
        task, _ = self._sent.popleft()
        done = await task
        for name in self._counts:
            self._counts[name] += done[name]
        for error in done["errors"]:
            self._keep_error(error)

    def _keep_error(self, error: dict[str, Any]) -> None:
        if len(self._errors) < MAX_ERRORS:
            self._errors.append(error)


async def import_clients(
    services: ServiceClient, context: RequestContext, chunks: AsyncIterator[bytes], *, is_csv: bool
) -> dict[str, Any]:
    """Import the clients of a file, CSV or JSON lines; return after all are committed.

    The report has the numbers `created`, `updated` and `failed`, and `errors` with the first lines
    that were not imported.

    Raises:
        ProblemError: 422, the header of the CSV is not valid, and nothing was imported; or the
            import was interrupted.
    """
    running = _Import(services, context)
    try:
        await _import(chunks, running, None if is_csv else parse_json)
    except ProblemError as problem:
        if await running.settle():
            raise
        raise _interrupted(problem, running.imported) from None
    finally:
        await running.close()
    return running.report


async def _import(chunks: AsyncIterator[bytes], running: _Import, parse: LineParser | None) -> None:
    """Import the lines of the file; without a parser, the first one is the header of a CSV."""
    async for lines in _lines(chunks):
        for number, line in lines:
            try:
                if parse is None:
                    parse = _csv_parser(line)
                    continue
                client = parse(line)
            except InvalidLineError as error:
                running.reject(number, str(error))
            else:
                running.add(number, client)
                if running.is_full:
                    await running.send()
    if parse is None:
        _csv_parser(b"")
    await running.finish()


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[Iterator[tuple[int, bytes]]]:
    """Yield the lines of the file, some at a time."""
    lines = Lines()
    async for chunk in chunks:
        yield lines.feed(chunk)
    yield lines.end()


def _csv_parser(header: bytes) -> LineParser:
    try:
        return csv_parser(header, COLUMNS, MANDATORY)
    except InvalidLineError as error:
        raise ProblemError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "invalid",
            "1 field is invalid",
            errors=[FieldError(field="header", message=str(error))],
        ) from None


def _interrupted(problem: ProblemError, imported: int) -> ProblemError:
    """Return the problem of an import that has ended early. A 503 would say: nothing was done."""
    status, kind = problem.status, problem.kind
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        status, kind = HTTPStatus.GATEWAY_TIMEOUT, "no_answer"
    return ProblemError(
        status,
        kind,
        f"{problem} At least {imported} lines were imported before. Repeat the whole import:"
        " lines that were imported stay as they are.",
        errors=problem.errors,
    )
