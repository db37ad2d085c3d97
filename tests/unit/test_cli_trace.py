"""M14: `ringback trace` prints what the logs say about a mailing, a message or a recipient."""

import json
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from services.cli.trace import sort_by_time, trace


def line(second: float, service: str, message: str, **fields: Any) -> str:
    head = {"timestamp": f"2026-11-20T15:00:{second:06.3f}Z", "level": "INFO"}
    return json.dumps(head | {"message": message, "service": service} | fields)


IDS = {"mailing_id": "a-1", "message_id": "m-1", "recipient_id": "r-1"}
OTHER = {"mailing_id": "a-1", "message_id": "m-2", "recipient_id": "r-2"}
GATEWAY = [
    line(0, "gateway", "http request", route="/v1/clients", status=201, recipient_id="r-1"),
    line(1, "gateway", "http request", route="/v1/mailings", status=201, mailing_id="a-1"),
    line(9, "gateway", "http request", route="/v1/mailings/{id}", status=200, mailing_id="a-2"),
]
DELIVERY = [
    line(3, "delivery", "message attempt failed", attempt=1, error="responded with 503", **IDS),
    line(2, "delivery", "message sent", attempt=1, **OTHER),  # a worker's line that came late
    line(5, "delivery", "message sent", attempt=2, **IDS),
]


def run(*arguments: str, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(trace, arguments, input=stdin)


@pytest.mark.parametrize(
    ("kind", "id_", "story"),
    [
        ("mailing", "a-1", [GATEWAY[1], DELIVERY[1], DELIVERY[0], DELIVERY[2]]),
        ("message", "m-1", [DELIVERY[0], DELIVERY[2]]),
        ("recipient", "r-1", [GATEWAY[0], DELIVERY[0], DELIVERY[2]]),
    ],
)
def test_m14_the_story_is_in_order_of_time_from_files_and_from_standard_input(
    tmp_path: Path, kind: str, id_: str, story: list[str]
) -> None:
    for name, lines in {"delivery": DELIVERY, "gateway": GATEWAY}.items():
        (tmp_path / name).write_text("\n".join(lines))
    from_files = run(kind, id_, str(tmp_path / "delivery"), str(tmp_path / "gateway"), "--json")
    from_input = run(kind, id_, "--json", stdin="\n".join(DELIVERY + GATEWAY))
    assert from_files.stdout.splitlines() == from_input.stdout.splitlines() == story


def test_m14_a_row_has_time_service_what_happened_and_the_result_first() -> None:
    output = run("message", "m-1", stdin=DELIVERY[0]).stdout
    assert output == (
        "2026-11-20 15:00:03.000  delivery   message attempt failed        "
        "error=responded with 503  attempt=1  mailing_id=a-1  recipient_id=r-1\n"
    )


def test_m14_a_row_shows_objects_as_json() -> None:
    done = line(1, "mailings", "posting done", mailing_id="a-1", messages={"sent": 2}, last=None)
    assert run("mailing", "a-1", stdin=done).stdout.endswith('  messages={"sent":2}  last=null\n')


def test_m14_a_user_of_a_posting_is_a_recipient() -> None:
    sent = line(1, "delivery", "message sent", message_id="m-1", user_id="u-1")
    assert "message sent" in run("recipient", "u-1", stdin=sent).stdout


def test_m14_a_line_can_concern_several_recipients() -> None:
    imported = line(1, "mailings", "clients changed by an import", recipient_ids=["r-1", "r-2"])
    assert "import" in run("recipient", "r-2", stdin=imported).stdout
    assert run("recipient", "r-3", stdin=imported).exit_code == 1


def test_m14_lines_that_are_not_json_or_not_ours_are_skipped() -> None:
    wrong = [
        b'\xff\x00 "m-1" {',
        b'{"message_id": "m-1"',
        b'["m-1"] {"message_id": "m-1"}',  # no timestamp
        b"[" * 10_000 + b'{"message_id": "m-1"}',
        b'{"message_id": "m-1", "timestamp": 7}',
        b'{"message_id": "m-1", "timestamp": "2026-11-20"}',
        b'{"message_id": {"a": ' * 1_000,
        line(1, "delivery", "message sent", message_id="m-10", error='"m-1"').encode(),
        line(1, "delivery", "message sent", posting_id="m-1").encode(),
        b"",
    ]
    prefixed = f"delivery-1  | {DELIVERY[2]}\r"
    result = run("message", "m-1", "--json", stdin=b"\n".join([*wrong, prefixed.encode()]))
    assert result.stdout.splitlines() == [DELIVERY[2]]


def test_m14_a_line_of_another_program_may_have_any_service_and_message() -> None:
    foreign = line(1, "delivery", "message sent", message_id="m-1")
    fields = json.loads(foreign) | {"service": None, "message": ["m-1"]}
    shown = run("message", "m-1", stdin=json.dumps(fields)).stdout
    assert shown.split() == ["2026-11-20", "15:00:01.000", "null", '["m-1"]']


def test_m14_nothing_found_is_an_error_that_names_the_id() -> None:
    result = run("mailing", "a-3", stdin="\n".join(GATEWAY))
    assert result.exit_code == 1
    assert "Cannot trace mailing 'a-3': no log line contains it." in result.stderr


def test_m14_values_cannot_control_the_terminal() -> None:
    hostile = line(1, "delivery", "message failed", message_id="m-1", reason="\x1b[2J\n\r\x9b")
    shown = run("message", "m-1", stdin=hostile).stdout
    assert shown.rstrip("\n").isprintable()
    assert r"\x1b[2J" in shown


@given(times=st.lists(st.sampled_from([b"1", b"2", b"3"])), run_size=st.integers(1, 5))
def test_m14_lines_of_the_same_time_keep_their_order(times: list[bytes], run_size: int) -> None:
    lines = [b"%b %d\n" % (time, number) for number, time in enumerate(times)]
    assert list(sort_by_time(iter(lines), run_size)) == sorted(lines, key=lambda each: each[:1])


def test_m14_a_long_story_is_sorted_in_bounded_memory() -> None:
    def backwards() -> Iterator[bytes]:
        for number in range(100_000, 0, -1):
            yield b"%06d %b\n" % (number, b"x" * 400)

    tracemalloc.start()
    try:
        story = sort_by_time(backwards(), run_size=2_000)
        assert next(story).startswith(b"000001 ")
        assert sum(1 for _ in islice(story, 100_000)) == 99_999
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20, "all lines together have 40 MB"
