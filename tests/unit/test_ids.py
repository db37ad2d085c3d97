"""Ids that are ordered by time."""

from uuid import UUID, uuid5

import pytest

from services.scheduler.intake import id_of_request
from shared.contracts.schedules import callback_id_of_message
from shared.ids import uuid7, with_time_of


def test_finding_a19_ids_are_uuid7_and_ordered_by_time() -> None:
    ids = [uuid7() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert {(each.version, each.variant) for each in ids} == {(7, UUID(int=2 << 62).variant)}
    times = [each.int >> 80 for each in ids]
    assert times == sorted(times)


def test_finding_a19_callbacks_of_a_request_have_its_time() -> None:
    message_id = uuid7()
    found = [
        id_of_request("shop", None, message_id.hex),
        id_of_request("bank", None, str(message_id)),
        id_of_request("shop", None, message_id.hex, 0),
        id_of_request("shop", None, message_id.hex, 1),
        id_of_request("shop", message_id.hex, "other"),
        callback_id_of_message("shop", message_id.hex),
    ]
    assert len(set(found)) == len(found)
    assert {each.version for each in found} == {7}
    assert {each.int >> 80 for each in found} == {message_id.int >> 80}
    assert id_of_request("shop", None, message_id.hex) == found[0]


@pytest.mark.parametrize(
    "name",
    [
        "order-7",
        "x" * 12 + "7" + "x" * 19,
        "",
        "0539eb59-723b-4525-9ee7-3641703aa3c9",
        "6c26aa1fd88445afbfc3df65f1169e02",
        "\u0667" * 32,
    ],
)
def test_finding_a19_other_names_lead_to_a_hash(name: str) -> None:
    hashed = uuid5(UUID(int=0), name)
    assert with_time_of(name, hashed) == hashed
    assert callback_id_of_message("", name).version == 5
