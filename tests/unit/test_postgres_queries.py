"""Named queries, in the format of a service's sql/queries.sql."""

import pytest

from shared.postgres.queries import parse

TEXT = """-- The queries of the shop.

-- name: claim
-- Orders that are due.
UPDATE shop.orders SET taken = true -- name: none
WHERE due <= now();

-- name: count_2
SELECT count(*) FROM shop.orders
"""


def test_queries_have_names() -> None:
    found = parse(TEXT, source="shop")
    assert set(found) == {"claim", "count_2"}
    assert found["count_2"] == "SELECT count(*) FROM shop.orders"
    assert found["claim"].startswith("-- Orders that are due.\nUPDATE shop.orders")
    assert found["claim"].endswith("WHERE due <= now();")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("SELECT 1\n" + TEXT, "the first query has no line"),
        ("-- name: a\nSELECT 1\n-- name: a\nSELECT 2", "two queries are named a"),
        ("-- name: a\n-- nothing\n\n-- name: b\nSELECT 1", "the query a is empty"),
        ("-- name: Get it\nSELECT 1", "'Get it' is not a valid name"),
        ("-- name: \nSELECT 1", "'' is not a valid name"),
    ],
)
def test_an_invalid_file_is_reported_with_its_place(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        parse(text, source="the shop's queries")
    assert "the shop's queries" in str(caught.value)
