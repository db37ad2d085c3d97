"""Targets: their health, and pause and resume."""

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from services.console.minutes import SPANS, TARGET_SPANS, attempt_charts, span_of
from services.console.pages.declaration import Page
from services.console.sign_in.roles import Role
from services.console.visit import Notice, Visit
from shared.contracts.journal_figures import LIST_TARGETS, READ_TARGET
from shared.contracts.journal_replays import PAUSE_TARGET, RESUME_TARGET
from shared.contracts.requests import RpcOperation
from shared.http.problem import ProblemError

PAGE_SIZE: Final = 50
# A target contains slashes, so it is in the query and not in the path.
ONE: Final = "/targets/one"


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (
        Page("GET", "/targets", Role.VIEWER, "Targets", targets, section="Act"),
        Page("GET", ONE, Role.VIEWER, "Target", one),
        Page("POST", "/targets/pause", Role.OPERATOR, "Pause a target", pause),
        Page("POST", "/targets/resume", Role.OPERATOR, "Resume a target", resume),
    )


async def targets(visit: Visit) -> web.StreamResponse:
    """Return the targets, those with the most errors first."""
    span = span_of(visit.query.get("minutes"))
    body: dict[str, Any] = {"minutes": span, "limit": PAGE_SIZE}
    if "cursor" in visit.query:
        body["cursor"] = visit.query["cursor"]
    found = await visit.call(LIST_TARGETS, _of_client(visit, body))
    return visit.render(
        "targets.html",
        targets=found["items"],
        next_cursor=found["next_cursor"],
        spans=SPANS,
        span=str(span),
    )


async def one(visit: Visit) -> web.StreamResponse:
    """Return one target with its attempts by minute."""
    target = visit.query.get("target", "")
    span = span_of(visit.query.get("minutes"), TARGET_SPANS)
    if not target:
        raise ProblemError(HTTPStatus.NOT_FOUND, "not_found", "The URL names no target.")
    now = datetime.now(UTC)
    body = {"target": target, "minutes": span, "until": now}
    found = await visit.call(READ_TARGET, _of_client(visit, body))
    attempts, durations = attempt_charts(found["minutes"], now, span, visit.zone)
    return visit.render(
        "target.html",
        health=found["health"],
        breakers=found["breakers"],
        full_lanes=found.get("full_lanes", ()),
        attempts=attempts,
        durations=durations,
        spans=TARGET_SPANS,
        span=str(span),
    )


async def pause(visit: Visit) -> web.StreamResponse:
    """Pause a target for all clients."""
    text = "The target is paused. Its callbacks wait in the retry tiers."
    return await _control(visit, PAUSE_TARGET, text)


async def resume(visit: Visit) -> web.StreamResponse:
    """Resume a target."""
    return await _control(visit, RESUME_TARGET, "The target is resumed.")


async def _control(visit: Visit, operation: RpcOperation[Any], text: str) -> web.Response:
    target = visit.text("target")
    await visit.call(operation, {"target": target})
    return visit.redirect(visit.url(ONE, target=target), Notice(text))


def _of_client(visit: Visit, body: dict[str, Any]) -> dict[str, Any]:
    return body if visit.client_id is None else body | {"client_id": visit.client_id}
