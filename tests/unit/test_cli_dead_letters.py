"""Dead letters are shown without secrets."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.cli.dead_letters import HIDDEN, redacted

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
CANARY = "1f8e-canary"
SECRET_NAMES = st.sampled_from(
    ["hmac_secret", "password", "Authorization", "api_key", "X-Api-Key", "accessToken", "Cookie"]
)


@given(before=JSON, name=SECRET_NAMES, depth=st.integers(0, 4))
def test_no_secret_is_shown_at_any_depth(before: Any, name: str, depth: int) -> None:
    body: Any = {name: [CANARY, CANARY], "other": before}
    for _ in range(depth):
        body = {"nested": [body, before]}

    assert CANARY not in json.dumps(redacted(body))


@given(JSON)
def test_other_values_are_shown_unchanged(value: Any) -> None:
    body = {"payload": {"plain": "text", "number": 7}, "secret_ref": "billing"}

    assert redacted(body) == body
    json.dumps(redacted(value))  # anything can be shown


def test_a_url_is_shown_without_its_user_and_query_values() -> None:
    url = f"https://me:{CANARY}@example.com/a/b?key={CANARY}&x"

    shown = redacted(url)

    assert CANARY not in shown
    assert "example.com/a/b?key=" in shown


def test_a_malformed_url_is_not_shown() -> None:
    assert redacted(f"http://[{CANARY}") == HIDDEN
