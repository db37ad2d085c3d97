"""Migrations: their order, and which of them are missing."""

import pytest

from shared.postgres.migrations import Schema, SchemaMismatchError, missing, ordered

FILES = {"0002_prices.sql": "SELECT 2;\n", "0001_orders.sql": "SELECT 1;\n"}
SHOP = Schema("shop", ordered(FILES))
FIRST, SECOND = SHOP.migrations
APPLIED = {each.number: (each.name, each.checksum) for each in SHOP.migrations}


def test_migrations_are_ordered_by_number() -> None:
    assert [str(each) for each in SHOP.migrations] == ["0001_orders", "0002_prices"]
    assert FIRST.sql == "SELECT 1;\n"


def test_a_checksum_does_not_depend_on_line_endings() -> None:
    [same] = ordered({"0001_orders.sql": "SELECT 1;\r\n"})
    [other] = ordered({"0001_orders.sql": "SELECT 1 ;\n"})
    assert same.checksum == FIRST.checksum
    assert other.checksum != FIRST.checksum


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (
            ["1_orders.sql"],
            "'1_orders.sql' is not a valid migration name; name it like 0001_first.sql",
        ),
        (["0001_orders.sql", "notes.txt"], "'notes.txt' is not a valid migration name"),
        (["0002_orders.sql"], r"these are \[2\]"),
        (["0001_a.sql", "0003_b.sql"], r"these are \[1, 3\]"),
        (["0001_a.sql", "0001_b.sql"], r"these are \[1, 1\]"),
        ([], r"these are \[\]"),
    ],
)
def test_invalid_names_and_numbers_are_rejected(names: list[str], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        ordered(dict.fromkeys(names, "SELECT 1"))


def test_the_name_of_a_schema_needs_no_quotes() -> None:
    with pytest.raises(ValueError, match="is not a valid schema name"):
        Schema("shop; DROP TABLE x", SHOP.migrations)


def test_missing_migrations_are_those_not_applied() -> None:
    assert missing(SHOP, {}) == (FIRST, SECOND)
    assert missing(SHOP, {1: APPLIED[1]}) == (SECOND,)
    assert missing(SHOP, APPLIED) == ()


def test_finding_a17_migrations_of_a_newer_version_are_not_an_error() -> None:
    assert missing(SHOP, APPLIED | {3: ("later", "x")}) == ()


@pytest.mark.parametrize(
    ("applied", "fault"),
    [
        (APPLIED | {1: ("orders", "x")}, "0001_orders of the schema shop was changed after"),
        (APPLIED | {1: ("other", "x")}, "0001_other of the schema shop is named 0001_orders in"),
        ({2: APPLIED[2]}, "0001_orders of the schema shop was not applied"),
    ],
)
def test_a_different_history_is_an_error(applied: dict[int, tuple[str, str]], fault: str) -> None:
    with pytest.raises(SchemaMismatchError, match=fault):
        missing(SHOP, applied)


def test_all_differences_are_reported_at_once() -> None:
    with pytest.raises(SchemaMismatchError) as caught:
        missing(SHOP, {2: ("prices", "x"), 3: ("later", "x")})
    assert len(caught.value.faults) == 2
