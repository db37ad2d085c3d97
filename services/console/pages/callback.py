"""One callback: its timeline, its request, and the actions on it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

from aiohttp import web

from services.console.forms import FormReader
from services.console.kept import curl, wire_request
from services.console.pages.declaration import Page
from services.console.sign_in.roles import Role
from services.console.visit import Notice, Visit
from shared.contracts.journal_reads import READ_TIMELINE
from shared.contracts.journal_replays import READ_REQUEST, REPLAY_CALLBACK
from shared.contracts.schedule_requests import (
    CANCEL_CALLBACKS,
    GET_CALLBACK,
    LIST_OCCURRENCES,
    RESCHEDULE_CALLBACK,
    RUN_CALLBACK,
)
from shared.http.problem import ProblemError

# An id may contain any visible character, so it is in the query and not in the path.
ONE: Final = "/callbacks/one"
# The colour of each kind of step; that of attempts follows from their outcome.
KINDS: Final = {
    "scheduled": "info",
    "rescheduled": "info",
    "dispatched": "info",
    "tier": "odd",
    "retry": "odd",
    "dispatch_failed": "bad",
    "expired": "bad",
    "notified": "good",
    "failed": "bad",
    "dead": "bad",
    "replayed": "info",
    "redriven": "info",
}
# Statuses in which the scheduler can still change a callback.
_OPEN: Final = frozenset({"scheduled", "dispatched", "retrying"})
# The result of an action of the scheduler, in words.
_RESULTS: Final = {
    "cancelled": "The callback is cancelled.",
    "rescheduled": "The callback is moved.",
    "started": "The callback is sent now.",
    "in_flight": "The callback is being sent. Its attempts go on, and no main retry follows.",
    "already_notified": "Nothing was done: the callback is notified already.",
    "already_failed": "Nothing was done: the callback has failed already.",
    "already_cancelled": "Nothing was done: the callback is cancelled already.",
    "not_found": "Nothing was done: the scheduler does not have this callback.",
}
_DONE: Final = frozenset({"cancelled", "rescheduled", "started"})


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (
        Page("GET", ONE, Role.VIEWER, "Callback", one),
        Page("GET", f"{ONE}/request", Role.ADMIN, "Kept request", request),
        Page("POST", f"{ONE}/replay", Role.OPERATOR, "Replay a callback", replay),
        Page("POST", f"{ONE}/cancel", Role.OPERATOR, "Cancel a callback", cancel),
        Page("POST", f"{ONE}/move", Role.OPERATOR, "Move a callback", move),
        Page("POST", f"{ONE}/run", Role.OPERATOR, "Send a callback now", run),
    )


async def one(visit: Visit) -> web.StreamResponse:
    """Return what the journal and the scheduler know about a callback."""
    id_ = _id(visit.query.get("id", ""))
    story, fault = await _story(visit, id_)
    steps = [] if story is None else story["items"]
    owners = _owners(steps)
    if len(owners) == 1:  # the links and actions of the page are on behalf of this client
        visit = replace(visit, client_id=owners[0])
    status = await _status(visit, id_, steps)
    if status is None and fault is not None:
        raise fault
    answered = [step["entry"] for step in steps if step["kind"] == "attempt"]
    return visit.render(
        "callback.html",
        id=id_,
        kinds=KINDS,
        story=story,
        fault=fault,
        steps=steps,
        callback=status,
        occurrences=await _occurrences(visit, status),
        owners=owners,
        # The client's own data, like the payload of a kept request.
        context=_json(status["context"]) if status and visit.allows("admin") else None,
        can_change=status is not None and status["status"] in _OPEN,
        last=answered[-1] if answered else None,
        trace_id=next((s["entry"]["trace_id"] for s in steps if s["entry"]["trace_id"]), None),
    )


async def request(visit: Visit) -> web.StreamResponse:
    """Return the kept request of a callback, without its secrets."""
    id_ = _id(visit.query.get("id", ""))
    kept = await visit.call(READ_REQUEST, _of_client(visit, id_))
    wire = wire_request(kept["callback_id"], kept["request"])
    return visit.render(
        "kept_request.html",
        id=id_,
        kept=kept,
        wire=wire,
        message=_json(kept["request"]),
        curl=curl(wire),
    )


async def replay(visit: Visit) -> web.StreamResponse:
    """Send the kept request again, and return to the callback."""
    id_ = _id(visit.text("id"))
    await visit.call(REPLAY_CALLBACK, _of_client(visit, id_) | visit.other_url())
    text = "The request is sent again. Reload this page to see the next attempt."
    return visit.redirect(visit.url(ONE, id=id_), Notice(text))


async def cancel(visit: Visit) -> web.StreamResponse:
    """Cancel the callback."""
    id_ = _id(visit.text("id"))
    response = await visit.call(CANCEL_CALLBACKS, {"id": id_})
    return await _done(visit, id_, "cancel", response["result"])


async def move(visit: Visit) -> web.StreamResponse:
    """Move the callback to another due time."""
    id_ = _id(visit.text("id"))
    form = FormReader(visit.form, visit.zone)
    run_at = form.time("run_at")
    form.check()
    response = await visit.call(RESCHEDULE_CALLBACK, {"id": id_, "run_at": run_at})
    return await _done(visit, id_, "reschedule", response["result"], run_at=run_at)


async def run(visit: Visit) -> web.StreamResponse:
    """Send the callback now."""
    id_ = _id(visit.text("id"))
    response = await visit.call(RUN_CALLBACK, {"id": id_})
    return await _done(visit, id_, "run", response["result"])


async def _done(visit: Visit, id_: str, action: str, result: str, **detail: Any) -> web.Response:
    await visit.record(action, f"callback {id_}", result=result, **detail)
    kind = "good" if result in _DONE else "bad"
    return visit.redirect(visit.url(ONE, id=id_), Notice(_RESULTS[result], kind))


async def _story(visit: Visit, id_: str) -> tuple[Any, ProblemError | None]:
    """Return the timeline, or the reason why there is none."""
    body = _of_client(visit, id_) | FormReader(visit.query, visit.zone).given("cursor")
    try:
        return await visit.call(READ_TIMELINE, body), None
    except ProblemError as problem:
        return None, problem


def _of_client(visit: Visit, id_: str) -> dict[str, Any]:
    """Return the fields of a request about a callback: of the selected client, if there is one."""
    return {"id": id_} | ({} if visit.client_id is None else {"client_id": visit.client_id})


def _owners(steps: list[Any]) -> list[str | None]:
    """Return the clients whose callbacks have this id. None is the anonymous one."""
    # Entries of dead letters have no client.
    own = [step["entry"] for step in steps if step["kind"] not in {"redriven", "discarded"}]
    return list(dict.fromkeys(entry["client_id"] for entry in own))


async def _status(visit: Visit, id_: str, steps: list[Any]) -> Any:
    """Return what the scheduler knows, or None."""
    ids = [s["entry"]["schedule_id"] for s in steps if s["entry"]["schedule_id"]]
    schedule_id = ids[0] if ids else id_.partition(".")[0]
    try:
        UUID(schedule_id)
        return await visit.call(GET_CALLBACK, {"id": schedule_id})
    except (ValueError, ProblemError):
        return None


async def _occurrences(visit: Visit, status: Any) -> Sequence[str]:
    """Return when a callback that repeats is due next, if the scheduler can say that now."""
    # A scheduler of an older version does not respond with `repeat`.
    if status is None or status.get("repeat") is None or status["status"] not in _OPEN:
        return ()
    try:
        found = await visit.call(LIST_OCCURRENCES, {"id": status["id"]})
    except ProblemError:
        return ()
    times: Sequence[str] = found["items"]
    return times


def _id(text: str) -> str:
    if not text:
        raise ProblemError(HTTPStatus.NOT_FOUND, "not_found", "The URL names no callback.")
    return text


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
