"""M12: the content of the daily report."""

import os
from datetime import UTC, date, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from services.mailings.rendering.loader import TemplateLoader
from services.mailings.reports.domain import (
    DayReport,
    ReportedMailing,
    bounds,
    day_before,
    message_id,
)
from services.mailings.reports.rendering import render
from services.mailings.reports.schedule import ReportSchedule
from shared.contracts.mailings import MailingStatus
from shared.contracts.posting_requests import MessageState

GOLDEN = Path(__file__).parents[1] / "contract" / "golden" / "renderings"
MOSCOW = ZoneInfo("Europe/Moscow")
DAY = date(2026, 11, 20)
CREATED, SENT, FAILED, EXPIRED, SKIPPED, CANCELLED = MessageState
REPORT = DayReport(
    DAY,
    MOSCOW,
    3,
    [
        ReportedMailing(
            UUID(int=1),
            "Black Friday: 20% off & more <today>",
            MailingStatus.FINISHED,
            {SENT: 1500, FAILED: 3, SKIPPED: 97},
        ),
        ReportedMailing(UUID(int=2), "sms/hello.md", MailingStatus.PAUSED, {CREATED: 120}),
    ],
    {
        datetime(2026, 11, 20, 6, tzinfo=UTC): {SENT: 1000, SKIPPED: 97},
        datetime(2026, 11, 20, 8, tzinfo=UTC): {SENT: 500, FAILED: 3, CREATED: 120},
    },
    {"invalid_address": 97, "refused": 3},
)
FRAME = TemplateLoader(None).frame()


@pytest.mark.parametrize("suffix", ["txt", "html"])
def test_m12_the_report_is_rendered_as_recorded(suffix: str) -> None:
    rendered = render(REPORT, FRAME, product="Ringback")
    content = rendered.text if suffix == "txt" else rendered.html or ""
    golden = GOLDEN / f"daily_report.{suffix}"
    if os.environ.get("WRITE_GOLDEN"):
        golden.write_text(content)

    assert rendered.subject == "Mailings on Friday, 20 November 2026"
    assert content == golden.read_text()


def test_m12_the_chart_has_only_what_mail_clients_display() -> None:
    tags, cells = [], []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            if tag == "td" and "bgcolor" in dict(attrs):
                cells.append(dict(attrs)["width"])

    Parser().feed(render(REPORT, FRAME, product="Ringback").html or "")

    assert not {"img", "script", "svg", "canvas", "link", "iframe"} & set(tags)
    assert cells == ["91%", "9%", "80%", "19%", "1%"]


def test_m12_values_in_a_report_are_text() -> None:
    html = render(REPORT, FRAME, product="Ringback").html or ""
    assert "20% off &amp; more &lt;today&gt;" in html
    assert "<today>" not in html


def test_m12_a_day_without_messages_has_a_report() -> None:
    rendered = render(DayReport(DAY, MOSCOW, 0, [], {}, {}), FRAME, product="Ringback")
    assert "No messages were created." in rendered.text
    assert "By hour" not in rendered.text
    assert "No messages were created." in (rendered.html or "")


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Moscow", date(2026, 11, 20), 24),
        ("Europe/Berlin", date(2026, 3, 29), 23),
        ("Europe/Berlin", date(2026, 10, 25), 25),
        ("Asia/Kathmandu", date(2026, 11, 20), 24),
    ],
)
def test_m12_a_day_lasts_from_midnight_to_midnight(zone: str, day: date, hours: int) -> None:
    begin, end = bounds(day, ZoneInfo(zone))
    assert (end - begin).total_seconds() == hours * 3600
    assert begin.astimezone(ZoneInfo(zone)).isoformat().startswith(f"{day}T00:00:00")


def test_m12_the_report_is_about_the_local_day_before() -> None:
    at = datetime(2026, 11, 20, 22, 0, tzinfo=UTC)  # the 21st in Moscow
    assert day_before(at, MOSCOW) == date(2026, 11, 20)
    assert day_before(at, ZoneInfo("UTC")) == date(2026, 11, 19)


def test_m12_a_repeated_report_has_the_same_message_id() -> None:
    assert message_id(DAY, "a@example.com") == message_id(DAY, "a@example.com")
    assert message_id(DAY, "a@example.com") != message_id(DAY, "b@example.com")


def test_m12_the_hours_between_the_first_and_the_last_one_are_shown() -> None:
    assert [label for label, _ in REPORT.hours] == ["09:00", "10:00", "11:00"]


class Scheduler:
    """Stands for a client of the scheduler, which has one callback."""

    def __init__(self, callback: dict[str, object]) -> None:
        self._callback = callback
        self.operations: list[str] = []

    async def request(self, _: str, operation: str, *__: object, **___: object) -> object:
        self.operations.append(operation)
        return self._callback | {"run_at": "2026-11-21T08:00:00Z"}


@pytest.mark.parametrize(
    ("at", "operations"), [("08:00", ["GetCallback"]), ("09:00", ["GetCallback", "PutCallback"])]
)
async def test_m12_a_scheduler_of_any_version_keeps_the_report(
    at: str, operations: list[str]
) -> None:
    context = {"at": "08:00", "timezone": "UTC"}
    client: Any = Scheduler({"context": context, "a_field_of_a_newer_version": 1})
    await ReportSchedule(client, at=at, timezone="UTC").ensure()
    assert client.operations == operations
