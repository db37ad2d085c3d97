"""U4, U6: cursors of user events."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.polls import (
    MAX_CURSOR,
    MAX_ID,
    UserCursor,
    decode_user_cursor,
    encode_user_cursor,
)

CURSORS = st.builds(UserCursor, st.integers(1, MAX_ID), st.integers(0, MAX_ID))


@given(CURSORS)
def test_u6_a_cursor_is_decoded_as_it_was_encoded(cursor: UserCursor) -> None:
    text = encode_user_cursor(cursor)
    assert decode_user_cursor(text) == cursor
    assert len(text) <= MAX_CURSOR
    assert text.replace("-", "").replace("_", "").isalnum()


@given(st.text(max_size=MAX_CURSOR) | CURSORS.map(encode_user_cursor).map(lambda text: text + "="))
def test_u6_any_other_text_is_a_value_error(text: str) -> None:
    try:
        cursor = decode_user_cursor(text)
    except ValueError:
        return
    assert encode_user_cursor(cursor) == text


@pytest.mark.parametrize(
    "text",
    ["0.1", "01.1", "1.01", "1.-1", "1", "1.1.1", "\u0661.1", "1.9999999999999999999", "1.1\n", ""],
)
def test_u6_another_content_is_not_a_cursor(text: str) -> None:
    with pytest.raises(ValueError, match="is not a cursor"):
        decode_user_cursor(base64.urlsafe_b64encode(text.encode()).decode().rstrip("="))
