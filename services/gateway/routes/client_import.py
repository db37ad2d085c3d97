"""The route `/v1/clients/import`: streams lines to mailings in batches.

Memory holds one batch and the first errors, however long the body is. A batch is sent after the
response to the one before, so the last line of a phone wins, and a slow database slows the sender.
"""

from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from pydantic_core import to_json

from services.gateway.importing import InvalidLineError, LineParser, Lines, csv_parser, parse_json
from services.gateway.parsing import body_chunks, check_media_type, invalid
from services.gateway.responses import json_response
from services.gateway.routes.declaration import Dependencies
from services.gateway.rpc import ServiceClient
from shared.amqp.rpc import RequestContext
from shared.contracts.client_requests import IMPORT_CLIENTS, MAX_IMPORT_SIZE
from shared.contracts.clients import NewClient
from shared.contracts.requests import FieldError
from shared.http.problem import ProblemError

CSV: Final = "text/csv"
JSON_LINES: Final = "application/x-ndjson"
COLUMNS: Final = tuple(NewClient.model_fields)
MANDATORY: Final = tuple(
    name for name, field in NewClient.model_fields.items() if field.is_required()
)
# Lines in the list of errors; `failed` counts all.
MAX_ERRORS: Final = 1000


class _Import:
    """An import in progress."""

    def __init__(self, services: ServiceClient, context: RequestContext) -> None:
        self._services = services
        self._context = context
        self._batch: list[dict[str, Any]] = []
        self._counts = {"created": 0, "updated": 0, "failed": 0}
        self._errors: list[dict[str, Any]] = []

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
        body = to_json({"lines": self._batch})
        self._batch = []
        done = await self._services.request(IMPORT_CLIENTS, body, self._context)
        for name in self._counts:
            self._counts[name] += done[name]
        for error in done["errors"]:
            self._keep_error(error)

    def _keep_error(self, error: dict[str, Any]) -> None:
        if len(self._errors) < MAX_ERRORS:
            self._errors.append(error)


async def import_clients(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Import the clients in the body; respond after all are committed."""
    media_type = check_media_type(request, (CSV, JSON_LINES))
    running = _Import(deps.services, context)
    try:
        await _import(request, running, parse_json if media_type == JSON_LINES else None)
    except ProblemError as problem:
        raise _interrupted(problem, running.imported) from None
    return json_response(running.report)


async def _import(request: web.Request, running: _Import, parse: LineParser | None) -> None:
    """Import the lines of the body; without a parser, the first one is the header of a CSV."""
    async for lines in _lines(request):
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
    await running.send()


async def _lines(request: web.Request) -> AsyncIterator[Iterator[tuple[int, bytes]]]:
    """Yield the lines of the body, some at a time."""
    lines = Lines()
    async for chunk in body_chunks(request):
        yield lines.feed(chunk)
    yield lines.end()


def _csv_parser(header: bytes) -> LineParser:
    try:
        return csv_parser(header, COLUMNS, MANDATORY)
    except InvalidLineError as error:
        raise invalid([FieldError(field="header", message=str(error))]) from None


def _interrupted(problem: ProblemError, imported: int) -> ProblemError:
    """Return the problem of an import that has ended early. A 503 promises that nothing is done."""
    if not imported:
        return problem
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
