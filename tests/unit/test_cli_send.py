"""The input of `ringback send`."""

import json

import pytest

from services.cli.send import parse
from shared.contracts.message_types import MESSAGE_TYPES
from shared.contracts.schedules import callback_id_of_message

ONE = {"target_url": "https://example.com/", "hmac_secret": "s", "payload": {"n": 1.0}}
SEND_CALLBACK = MESSAGE_TYPES["SendCallback"]


@pytest.mark.parametrize(
    ("text", "bodies"),
    [
        (json.dumps(ONE), [json.dumps(ONE)]),
        (json.dumps(ONE) + "\n", [json.dumps(ONE)]),
        ("\ufeff" + json.dumps(ONE), [json.dumps(ONE)]),
        (json.dumps(ONE, indent=2), [json.dumps(ONE, indent=2)]),
        (f"{json.dumps(ONE)}\r\n\r\n{json.dumps(ONE)}", [json.dumps(ONE)] * 2),
    ],
)
def test_the_input_is_one_document_or_json_lines(text: str, bodies: list[str]) -> None:
    documents, faults = parse(text.encode(), SEND_CALLBACK)

    assert faults == []
    assert [document.body.decode() for document in documents] == bodies


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_an_empty_input_is_a_fault(text: str) -> None:
    assert parse(text.encode(), SEND_CALLBACK) == ([], ["the input is empty"])


def test_a_fault_names_its_line_and_field() -> None:
    wrong = ONE | {"target_url": "", "timeout": -1}

    documents, faults = parse(f"{json.dumps(ONE)}\n{json.dumps(wrong)}".encode(), SEND_CALLBACK)

    assert [document.line for document in documents] == [1]
    assert [fault.rpartition(": ")[0] for fault in faults] == [
        "line 2: target_url",
        "line 2: timeout",
    ]


def test_the_id_of_a_scheduled_callback_is_derived_from_its_message_id() -> None:
    (document,), faults = parse(
        b'{"url": "https://example.com/"}', MESSAGE_TYPES["ScheduleCallback"]
    )
    assert faults == []
    assert document.id == str(callback_id_of_message("", document.message_id))


def test_every_wrong_field_of_a_schedule_is_named() -> None:
    _, faults = parse(b'{"url": "x", "retry_params": {"a": 1}}', MESSAGE_TYPES["ScheduleCallback"])
    assert [fault.partition(": ")[0] for fault in faults] == ["url", "retry_params.a"]
