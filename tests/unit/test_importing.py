"""M1: the lines of an import, in chunks of any length."""

import csv
import io
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.importing import (
    MAX_LINE_BYTES,
    InvalidLineError,
    Lines,
    csv_parser,
    parse_json,
)

COLUMNS = ("phone", "operator_code", "tag", "timezone")
MANDATORY = ("phone", "timezone")
LINE = st.binary(max_size=6).map(lambda line: line.replace(b"\n", b""))
# A field as a program writes it: white space around it does not count.
FIELD = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029\x85"),
    max_size=20,
).map(str.strip)


@given(lines=st.lists(LINE), chunks=st.lists(st.integers(1, 5)))
def test_m1_lines_and_their_numbers_do_not_depend_on_the_chunks(
    lines: list[bytes], chunks: list[int]
) -> None:
    data = b"x\n" + b"\n".join(lines)
    wanted = [
        (number, line.strip()) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()
    ]
    reader = Lines()
    found: list[tuple[int, bytes]] = []
    rest = data
    for size in chunks:
        found += reader.feed(rest[:size])
        rest = rest[size:]
    found += reader.feed(rest)
    found += reader.end()
    assert found == wanted


@given(fields=st.lists(FIELD, min_size=4, max_size=4))
def test_m1_a_line_that_a_csv_writer_wrote_is_read_as_its_fields(fields: list[str]) -> None:
    written = io.StringIO()
    csv.writer(written, lineterminator="").writerow(fields)
    parse = csv_parser(",".join(COLUMNS).encode(), COLUMNS, MANDATORY)
    line = written.getvalue().encode()
    assert parse(line) == {n: v for n, v in zip(COLUMNS, fields, strict=True) if v}


@given(fields=st.lists(FIELD, min_size=4, max_size=4))
def test_m1_a_header_with_semicolons_selects_them_for_all_lines(fields: list[str]) -> None:
    written = io.StringIO()
    csv.writer(written, delimiter=";", lineterminator="").writerow(fields)
    parse = csv_parser(";".join(COLUMNS).encode(), COLUMNS, MANDATORY)
    line = written.getvalue().encode()
    assert parse(line) == {n: v for n, v in zip(COLUMNS, fields, strict=True) if v}
    # A comma in them is part of a field.
    assert parse(b"79161234567;;regular, new;Asia/Omsk")["tag"] == "regular, new"


@given(line=st.binary(max_size=40))
def test_m1_any_line_is_an_object_or_is_rejected(line: bytes) -> None:
    for parse in (parse_json, csv_parser(b"timezone,phone", COLUMNS, MANDATORY)):
        with suppress(InvalidLineError):
            assert isinstance(parse(line), dict)


def test_m1_a_line_without_an_end_takes_little_memory_and_has_one_reason() -> None:
    reader = Lines()
    for _ in range(1000):
        assert list(reader.feed(b"x" * 10_000)) == []
    [(number, line), (after, good)] = reader.feed(b"x\n{}\n")
    assert (number, after) == (1, 2)
    assert len(line) == MAX_LINE_BYTES + 2
    with pytest.raises(InvalidLineError, match="is longer than 2048 bytes"):
        parse_json(line)
    assert parse_json(good) == {}


def test_m1_and_row_26_a_deeply_nested_line_does_not_spoil_its_batch() -> None:
    line = b'{"phone":' + b"[" * 199 + b"]" * 199 + b"}"
    with pytest.raises(InvalidLineError, match="'phone' must not be an object or a list"):
        parse_json(line)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"phone,timezone,Name", "unknown column 'name'; known: phone, operator_code, tag"),
        (b"phone,timezone,Phone", "the column phone is named twice"),
        (b"tag,timezone", "the column phone is missing"),
        (b"", "the column phone is missing"),
    ],
)
def test_m1_a_wrong_header_has_a_reason(header: bytes, reason: str) -> None:
    with pytest.raises(InvalidLineError, match=reason):
        csv_parser(header, COLUMNS, MANDATORY)
