"""The tokens of unsubscribe links."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mailings.app import MissingSecretsKeyError, _unsubscribe
from services.mailings.unsubscribe import Unsubscribe, subscription_id
from shared.contracts.messages import SendEmail

URL = "https://ringback.example.com/v1/unsubscribe"
OLD, NEW = os.urandom(32), os.urandom(32)
ANN = subscription_id("ann@example.com", "news")


def token(link: str | None) -> str:
    assert link is not None
    return link.removeprefix(f"{URL}?token=")


@given(st.emails(), st.text(min_size=1, max_size=100))
def test_finding_c14_a_link_names_one_address_and_one_kind(address: str, kind: str) -> None:
    unsubscribe = Unsubscribe(URL, [OLD])
    link = unsubscribe.link(subscription_id(address, kind))
    assert unsubscribe.verified(token(link)) == subscription_id(address.upper().lower(), kind)
    assert address not in str(link)
    SendEmail(to="a@example.com", subject="s", text="t", unsubscribe_url=link)
    assert subscription_id(address, f"{kind} ") != subscription_id(address, kind)
    assert subscription_id(f"a{address}", kind) != subscription_id(address, kind)


@given(st.text())
def test_finding_c14_no_other_text_is_a_token(text: str) -> None:
    assert Unsubscribe(URL, [OLD]).verified(text) is None


def test_finding_c14_a_changed_token_is_not_valid() -> None:
    unsubscribe = Unsubscribe(URL, [OLD])
    valid = token(unsubscribe.link(ANN))
    for at in range(len(valid) - 1):
        changed = valid[:at] + ("A" if valid[at] != "A" else "B") + valid[at + 1 :]
        assert unsubscribe.verified(changed) is None
        assert unsubscribe.verified(valid[:at]) is None


def test_finding_c14_a_link_is_valid_until_its_key_is_removed() -> None:
    before = token(Unsubscribe(URL, [OLD]).link(ANN))
    rotating = Unsubscribe(URL, [NEW, OLD])
    assert rotating.verified(before) == ANN
    assert Unsubscribe(URL, [NEW]).verified(token(rotating.link(ANN))) == ANN
    assert Unsubscribe(URL, [NEW]).verified(before) is None


def test_finding_c14_without_a_key_there_is_no_link() -> None:
    assert Unsubscribe(None, [OLD]).link(ANN) is None
    assert Unsubscribe(None, []).verified(token(Unsubscribe(URL, [OLD]).link(ANN))) is None
    with pytest.raises(MissingSecretsKeyError, match="RINGBACK_SECRETS_KEY"):
        _unsubscribe(URL, None)
