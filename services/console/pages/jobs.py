"""Jobs: what redrives, discards or replays everything that matches, with its progress."""

from typing import Any, Final

from aiohttp import web

from services.console.forms import FormReader, input_time
from services.console.live import stream
from services.console.pages.declaration import Page
from services.console.sign_in.roles import Role
from services.console.visit import Notice, Visit
from shared.contracts.journal import DEFAULT_RATE
from shared.contracts.journal_dead import CANCEL_JOB, LIST_JOBS, READ_JOB
from shared.contracts.journal_replays import START_REPLAY

PAGE_SIZE: Final = 50
KINDS: Final = (("", "all"), ("redrive", "redrive"), ("discard", "discard"), ("replay", "replay"))
STATUSES: Final = (
    ("", "all"),
    ("running", "running"),
    ("finished", "finished"),
    ("cancelled", "cancelled"),
    ("failed", "failed"),
)
OUTCOMES: Final = (("failed", "failed"), ("delivered", "delivered"))


def pages() -> tuple[Page, ...]:
    """Return the declarations."""
    return (
        Page("GET", "/replay", Role.OPERATOR, "Replay callbacks", selection, section="Act"),
        Page("POST", "/replay", Role.OPERATOR, "Replay callbacks", replay),
        Page("GET", "/jobs", Role.VIEWER, "Jobs", jobs, section="Act"),
        Page("GET", "/jobs/{id}", Role.VIEWER, "Job", job),
        Page("GET", "/live/jobs/{id}", Role.VIEWER, "Job", live_job, live=True),
        Page("POST", "/jobs/{id}/cancel", Role.OPERATOR, "Cancel a job", cancel),
    )


async def selection(visit: Visit) -> web.StreamResponse:
    """Return the filter of a replay, with the number of callbacks that match."""
    form = FormReader(visit.query, visit.zone)
    found = await visit.call(START_REPLAY, _replay(visit, form) | {"dry_run": True})
    return visit.render(
        "replay.html",
        matching=found["matching"],
        outcomes=OUTCOMES,
        selected=form.given("status", "reason", "target", "since", "until"),
        since=input_time(visit.query.get("since"), visit.zone),
        until=input_time(visit.query.get("until"), visit.zone),
        rate=DEFAULT_RATE,
    )


async def replay(visit: Visit) -> web.StreamResponse:
    """Start to send every callback that matches again."""
    body = _replay(visit, FormReader(visit.form, visit.zone)) | visit.other_url()
    started = await visit.call(START_REPLAY, body)
    return visit.redirect(visit.url(f"/jobs/{started['job']}"), Notice("The replay has started."))


async def jobs(visit: Visit) -> web.StreamResponse:
    """Return the jobs, the latest first."""
    body = FormReader(visit.query, visit.zone).given("kind", "status", "cursor")
    found = await visit.call(LIST_JOBS, body | {"limit": PAGE_SIZE})
    return visit.render(
        "jobs.html",
        jobs=found["items"],
        next_cursor=found["next_cursor"],
        kinds=KINDS,
        statuses=STATUSES,
    )


async def job(visit: Visit) -> web.StreamResponse:
    """Return one job with its progress."""
    return visit.render("job.html", job=await _read(visit))


async def live_job(visit: Visit) -> web.StreamResponse:
    """Stream the progress of a job."""
    template = visit.site.environment.get_template("job_progress.html")

    def render(found: Any) -> str:
        return template.render(visit=visit, job=found)

    key = "job", visit.parameters["id"]
    async with visit.site.feeds.follow(key, lambda: lambda: _read(visit)) as values:
        return await stream(visit, values, render)


async def cancel(visit: Visit) -> web.StreamResponse:
    """Cancel the job."""
    id_ = visit.parameters["id"]
    await visit.call(CANCEL_JOB, {"id": id_})
    text = "The job is cancelled. What it has done stays done."
    return visit.redirect(visit.url(f"/jobs/{id_}"), Notice(text))


async def _read(visit: Visit) -> Any:
    return await visit.call(READ_JOB, {"id": visit.parameters["id"]})


def _replay(visit: Visit, form: FormReader) -> dict[str, Any]:
    """Return the request for a replay with the filter and the rate in these fields.

    Raises:
        ProblemError: 422, some of them are not valid.
    """
    selected = form.given("reason", "target") | form.times("since", "until")
    if visit.client_id is not None:
        selected["client_id"] = visit.client_id
    body: dict[str, Any] = {"filter": selected, **form.given("status")}
    if (rate := form.number("rate")) is not None:
        body["rate"] = rate
    form.check()
    return body
