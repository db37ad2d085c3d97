"""Forms of the console, the figures of mailings, and segments of an SMS. Pure."""

from typing import Any
from zoneinfo import ZoneInfo

import pytest
from multidict import MultiDict

from services.console.forms import FormReader, input_time
from services.console.mailing_figures import charts_of, progress_of
from services.console.mailing_forms import content_of, values_of
from services.console.sms import segments
from shared.http.problem import ProblemError

BERLIN = ZoneInfo("Europe/Berlin")


def reader(**fields: str) -> FormReader:
    return FormReader(MultiDict(fields), BERLIN)


def test_a_time_is_in_the_zone_of_the_viewer_and_comes_back_the_same() -> None:
    assert reader(at="2026-07-01T12:00").time("at") == "2026-07-01T10:00:00+00:00"
    assert reader(at="2026-07-01T12:00+03:00").time("at") == "2026-07-01T09:00:00+00:00"
    assert input_time("2026-07-01T10:00:00Z", BERLIN) == "2026-07-01T12:00:00"
    assert input_time("2026-07-01T12:00", BERLIN) == "2026-07-01T12:00:00"
    assert input_time("soon", BERLIN) == input_time(None, BERLIN) == ""
    fields = reader(since="2026-07-01T12:00", until="2026-07-01T12:00:00Z", other=" ")
    assert fields.times("since", "until", "other", "missing") == {
        "since": "2026-07-01T10:00:00+00:00",
        "until": "2026-07-01T12:00:00+00:00",
    }
    assert fields.given("since", "other", "missing") == {"since": "2026-07-01T12:00"}
    for wrong in ("soon", "0001-01-01T00:00"):
        assert (form := reader(since=wrong)).time("since") is None
        assert [each.field for each in form.errors] == ["since"]


def test_all_wrong_fields_are_collected() -> None:
    form = reader(at="x", number="x", whole="1.5", json="{", fine="7")
    assert (form.time("at"), form.number("number"), form.whole("whole")) == (None, None, None)
    assert form.json("json") is None
    assert form.whole("fine") == 7
    assert form.whole("missing") is None
    with pytest.raises(ProblemError) as caught:
        form.check()
    assert [each.field for each in caught.value.errors] == ["at", "number", "whole", "json"]


def test_words_and_lines_ignore_what_is_empty() -> None:
    form = reader(words=" 916,, 926\r\n 903 ", lines="a b\r\n\r\n  c,d ")
    assert form.words("words") == ["916", "926", "903"]
    assert form.lines("lines") == ["a b", "c,d"]


def test_m10_the_form_of_a_mailing_keeps_all_its_fields() -> None:
    content: dict[str, Any] = {
        "text": "Hi\nthere",
        "template_context": {"a": [1]},
        "start_at": "2026-07-01T10:00:00+00:00",
        "end_at": "2026-07-02T10:00:00+00:00",
        "filter": {"operator_codes": ["916"], "tags": ["a b", "c"]},
        "local_hours": {"from": "09:00", "to": "21:00"},
        "rate_per_minute": 600,
    }
    values = values_of({**content, "template": None}, BERLIN)
    form = reader(**values)
    assert content_of(form) == content
    form.check()


STATISTICS = {
    "total": 10,
    "by_status": {"created": 4, "sent": 5, "failed": 1},
    "by_hour": [
        {"hour": "2026-07-01T10:00:00Z", "total": 6, "by_status": {"created": 4, "sent": 2}},
        {"hour": "2026-07-01T11:00:00Z", "total": 4, "by_status": {"sent": 3, "failed": 1}},
    ],
    "by_operator_code": [{"operator_code": "916", "total": 10, "by_status": {"sent": 5}}],
    "by_reason": {"refused": 1},
}


def test_m10_statistics_become_charts_by_time_code_and_reason() -> None:
    hours, codes, reasons = charts_of(STATISTICS, BERLIN)
    assert hours.headings == ["Time", "#sent", "#waiting", "#failed"]
    assert hours.rows == [["12:00", "2", "4", "0"], ["13:00", "3", "0", "1"]]
    assert codes.rows == [["916", "5"]]
    assert reasons.rows == [["refused", "1"]]
    assert charts_of({"by_hour": [], "by_operator_code": [], "by_reason": {}}, BERLIN) == []


def test_m10_progress_counts_clients_without_a_message_yet() -> None:
    progress = progress_of(STATISTICS, audience=20)
    assert (progress.settled, progress.total) == (6, 20)
    assert progress_of(STATISTICS).total == 10


@pytest.mark.parametrize(
    ("text", "characters", "count", "encoding"),
    [
        ("", 0, 1, "GSM-7"),
        ("a" * 160, 160, 1, "GSM-7"),
        ("a" * 161, 161, 2, "GSM-7"),
        ("a" * 306, 306, 2, "GSM-7"),
        ("a" * 307, 307, 3, "GSM-7"),
        ("€" * 80, 160, 1, "GSM-7"),
        ("€" * 81, 162, 2, "GSM-7"),
        ("я" * 70, 70, 1, "UCS-2"),
        ("я" * 71, 71, 2, "UCS-2"),
        ("\N{GRINNING FACE}" * 35, 70, 1, "UCS-2"),
        ("\N{GRINNING FACE}" * 36, 72, 2, "UCS-2"),
    ],
)
def test_m10_segments_follow_the_encoding(
    text: str, characters: int, count: int, encoding: str
) -> None:
    found = segments(text)
    assert (found.characters, found.count, found.encoding) == (characters, count, encoding)
