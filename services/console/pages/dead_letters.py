"""Dead letters: queues, groups, letters, and the jobs that redrive or discard them."""

import asyncio
import json
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from services.console.forms import FormReader, input_time
from services.console.pages.declaration import Page
from services.console.sign_in.roles import Role
from services.console.visit import Notice, Visit
from shared.contracts.journal import DEFAULT_RATE
from shared.contracts.journal_dead import (
    GROUP_DEAD,
    LIST_DEAD,
    READ_LETTER,
    START_DISCARD,
    START_REDRIVE,
)
from shared.contracts.requests import RpcOperation
from shared.http.problem import ProblemError
from shared.topology import WORK_QUEUES

PAGE_SIZE: Final = 50
GROUPS: Final = 20
_QUEUES: Final = tuple(work.name for work in WORK_QUEUES)
_FILTERS: Final = ("reason", "target", "since", "until")


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    queue = "/dead-letters/{queue}"
    return (
        Page("GET", "/dead-letters", Role.VIEWER, "Dead letters", queues, section="Act"),
        Page("GET", queue, Role.VIEWER, "Dead letters", letters),
        Page("GET", f"{queue}/letter", Role.ADMIN, "Dead letter", letter),
        Page("POST", f"{queue}/redrive", Role.OPERATOR, "Redrive dead letters", redrive),
        Page("POST", f"{queue}/discard", Role.ADMIN, "Discard dead letters", discard),
    )


async def queues(visit: Visit) -> web.StreamResponse:
    """Return the work queues with the number of their dead letters."""
    groups = await asyncio.gather(
        *(visit.call(GROUP_DEAD, {"queue": queue, "limit": 1}) for queue in _QUEUES)
    )
    rows = [
        (queue, found["total"], found["items"][0]["key"] if found["items"] else None)
        for queue, found in zip(_QUEUES, groups, strict=True)
    ]
    return visit.render("dead_queues.html", queues=rows, total=sum(total for _, total, _ in rows))


async def letters(visit: Visit) -> web.StreamResponse:
    """Return the dead letters of a queue: groups, those that match, and their number."""
    queue, form = _queue(visit), FormReader(visit.query, visit.zone)
    selected, cursor = _filter(visit, form), form.given("cursor")
    form.check()
    listing = {"queue": queue, "filter": selected, "limit": PAGE_SIZE, **cursor}
    counting = {"queue": queue, "move": {"filter": selected, "dry_run": True}}
    by_reason, by_target, found, matching = await asyncio.gather(
        visit.call(GROUP_DEAD, {"queue": queue, "group_by": "reason", "limit": GROUPS}),
        visit.call(GROUP_DEAD, {"queue": queue, "group_by": "target", "limit": GROUPS}),
        visit.call(LIST_DEAD, listing),
        visit.call(START_REDRIVE, counting),
    )
    return visit.render(
        "dead_letters.html",
        queue=queue,
        total=by_reason["total"],
        groups=(("reason", "Reason", by_reason["items"]), ("target", "Target", by_target["items"])),
        letters=found["items"],
        next_cursor=found["next_cursor"],
        matching=matching["matching"],
        selection=form.given(*_FILTERS),
        since=input_time(visit.query.get("since"), visit.zone),
        until=input_time(visit.query.get("until"), visit.zone),
        rate=DEFAULT_RATE,
    )


async def letter(visit: Visit) -> web.StreamResponse:
    """Return one dead letter, as it is in its queue, without its secrets."""
    queue = _queue(visit)
    found = await visit.call(READ_LETTER, {"queue": queue, "id": visit.query.get("id") or "-"})
    body = found["body"]
    return visit.render(
        "dead_letter.html",
        queue=queue,
        letter=found,
        body=body if isinstance(body, str) else json.dumps(body, indent=2, ensure_ascii=False),
    )


async def redrive(visit: Visit) -> web.StreamResponse:
    """Start to move the dead letters that match back to their work queue."""
    return await _start(visit, START_REDRIVE, "Redriving has started.")


async def discard(visit: Visit) -> web.StreamResponse:
    """Start to delete the dead letters that match."""
    return await _start(visit, START_DISCARD, "Discarding has started.")


async def _start(visit: Visit, operation: RpcOperation[Any], text: str) -> web.Response:
    form = FormReader(visit.form, visit.zone)
    move: dict[str, Any] = {"filter": _filter(visit, form)}
    if (rate := form.number("rate")) is not None:
        move["rate"] = rate
    form.check()
    started = await visit.call(operation, {"queue": _queue(visit), "move": move})
    return visit.redirect(visit.url(f"/jobs/{started['job']}"), Notice(text))


def _queue(visit: Visit) -> str:
    queue = visit.parameters["queue"]
    if queue not in _QUEUES:
        raise ProblemError(HTTPStatus.NOT_FOUND, "not_found", "There is no such work queue.")
    return queue


def _filter(visit: Visit, form: FormReader) -> dict[str, Any]:
    """Return the filter of dead letters in these fields."""
    selected = form.given("reason", "target") | form.times("since", "until")
    return selected if visit.client_id is None else selected | {"client_id": visit.client_id}
