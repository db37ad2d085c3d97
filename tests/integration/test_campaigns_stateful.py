"""Random lives of a mailing, compared with a model of a few lines."""

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shared.contracts.requests import Failure
from tests.fakes.campaigns import CampaignProcess, mailing, running_campaigns, soon

SECOND = timedelta(seconds=1)
# The status after an action that is not refused; "begin" depends on the start time.
NEXT = {
    ("start", "draft"): "begin",
    ("start", "scheduled"): "scheduled",
    ("start", "running"): "running",
    ("pause", "scheduled"): "paused",
    ("pause", "running"): "paused",
    ("pause", "paused"): "paused",
    ("resume", "paused"): "begin",
    ("resume", "scheduled"): "scheduled",
    ("resume", "running"): "running",
    **{("cancel", status): "cancelled" for status in ("draft", "scheduled", "running", "paused")},
    ("cancel", "cancelled"): "cancelled",
    **{("delete", status): "deleted" for status in ("draft", "scheduled", "finished", "cancelled")},
}


class Comparison:
    """A mailing and its model: what its owner has done, and which times have come."""

    def __init__(self, database_url: str, kind: str) -> None:
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.process: CampaignProcess = self.run(
            self.stack.enter_async_context(running_campaigns(database_url))
        )
        body = mailing(draft=kind == "draft")
        if kind != "running":
            body["start_at"] = soon(600)
        self.id: UUID = self.run(self.process.request("CreateMailing", mailing=body)).id
        self.status = kind
        self.due = kind == "running"
        self.started = kind == "running"
        self.over = False

    def run(self, awaitable: Any) -> Any:
        async def wait() -> Any:
            return await awaitable

        return self.runner.run(wait())

    def close(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()

    def step(self, name: str) -> None:
        match name:
            case "start time" | "end time":
                self.time_comes(name)
            case "delivery is away":
                self.process.partners.unavailable = True
            case "delivery is back":
                self.process.partners.unavailable = False
            case "worker":
                self.attend()
            case "all settled":
                self.settle()
            case _:
                self.act(name)
        self.compare()

    def act(self, action: str) -> None:
        result = self.run(self.process.request(f"{action.title()}Mailing", id=str(self.id)))
        after = NEXT.get((action, self.status))
        if self.status == "deleted":
            assert result.code == "not_found"
        elif after is None or (after == "begin" and self.over):
            assert result.code == "conflict"
        else:
            if after == "begin":
                self.started = self.started or self.due
                after = "running" if self.started else "scheduled"
            self.status = after
            if isinstance(result, Failure):
                assert result.code == "unknown"
                assert self.process.partners.unavailable
                assert self.started

    def time_comes(self, name: str) -> None:
        now = datetime.now(UTC)
        self.due = True
        self.over = self.over or name == "end time"
        end_at = now - SECOND if self.over else None
        self.run(self.process.move(self.id, start_at=now - 2 * SECOND, end_at=end_at))

    def attend(self) -> None:
        self.run(self.process.worker.run_once(10))
        if self.status == "scheduled" and self.due and not self.over:
            self.status, self.started = "running", True
        if self.status in ("scheduled", "running", "paused") and self.over:
            self.status = "finished"

    def settle(self) -> None:
        """Let expansion end, and all messages be settled. Then the worker finishes the mailing."""
        sql = (
            "UPDATE mailings.postings SET ended = 'expanded', ended_at = now()"
            " WHERE mailing_id = $1 AND ended_at IS NULL AND due_at <= now()"
        )
        expanded = self.run(self.process.database.execute(sql, self.id)) != "UPDATE 0"
        if expanded:
            assert self.status == "running"
            self.attend()
            self.status = "finished"
        else:
            self.attend()

    def compare(self) -> None:
        if self.status == "deleted":
            assert self.run(self.process.campaigns.get(self.id)) is None
            return
        stored = self.run(self.process.campaigns.get(self.id))
        assert stored.status == self.status
        assert (stored.started_at is not None) == self.started
        assert (stored.ended_at is not None) == (self.status in ("finished", "cancelled"))
        for posting in self.run(self.process.postings(self.id)):
            may_run = posting["ended_at"] is None and posting["is_due"]
            if self.status != "running" or not stored.is_stop_confirmed:
                assert not may_run
            elif not self.over:
                assert may_run
        stops = [stop for stop in self.process.partners.stops if stop[0] == self.id]
        versions = [version for _, version, _ in stops]
        assert versions == sorted(versions)
        if stored.is_stop_confirmed and stops and self.status != "finished":
            stopped = stops[-1][2] in ("paused", "cancelled")
            assert stopped == (self.status in ("paused", "cancelled"))


STEPS = st.sampled_from(
    [
        *("start", "pause", "resume", "cancel", "delete", "pause", "resume", "start", "resume"),
        *("start time", "start time", "end time", "worker", "worker", "worker"),
        *("all settled", "delivery is away", "delivery is back", "delivery is back"),
    ]
)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # shrinking would take minutes
    suppress_health_check=list(HealthCheck),
)
@given(st.sampled_from(["draft", "scheduled", "running"]), st.lists(STEPS, max_size=25))
def test_m2_and_m4_the_life_of_a_mailing_agrees_with_a_simple_model(
    database_url: str, kind: str, steps: list[str]
) -> None:
    comparison = Comparison(database_url, kind)
    try:
        for step in steps:
            comparison.step(step)
    finally:
        comparison.close()
