"""N7: a kept request becomes the same callback again, and people never see its secrets."""

import json
from base64 import urlsafe_b64encode
from typing import Any

import pytest

from services.journal.replays.domain import Kept, NotReplayableError, opened, redacted, replay
from shared.contracts.callback import SendCallback
from shared.contracts.kept_requests import pack
from shared.security.encryption import SecretCipher
from shared.topology import CALLBACKS

CANARY = "c4n4ry"
KEY = bytes(range(32))
REQUEST: dict[str, Any] = {
    "target_url": "https://example.com/hooks",
    "hmac_secret": CANARY,
    "payload": {"text": "hello", "number": 12345678901234567890, "float": 1.10},
    "client_id": "shop",
}


def kept(**fields: Any) -> Kept:
    return Kept("id-1", json.dumps(REQUEST | fields).encode())


def sent(request: Kept, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the headers and the SendCallback of a replay."""
    made = replay(request, **{"client_id": "shop", "replay_id": "job-1"} | arguments)
    message = made.message
    assert (message.routing_key, message.exchange) == (CALLBACKS, "")
    SendCallback.model_validate_json(message.body)
    return dict(message.properties.headers or {}), json.loads(message.body)


def test_n7_the_same_request_is_sent_under_the_same_id_without_an_owner() -> None:
    request = kept()
    headers, body = sent(request)
    assert replay(request, client_id="shop", replay_id="job-1").message.body == request.body
    assert body == REQUEST
    assert headers["x-ringback-id"] == "id-1"
    assert headers["x-ringback-replay"] == "job-1"
    assert "x-ringback-owner" not in headers


def test_n7_an_expiry_is_dropped() -> None:
    _, body = sent(kept(expires_at="2026-11-20T12:00:00Z"))
    assert body == REQUEST


def test_n7_with_another_url_a_pinned_certificate_is_dropped() -> None:
    _, body = sent(kept(fingerprint="ab" * 32), url="https://other.example/hooks")
    assert body == REQUEST | {"target_url": "https://other.example/hooks"}


def test_n7_a_secret_by_reference_stays_a_reference() -> None:
    request = {name: value for name, value in REQUEST.items() if name != "hmac_secret"}
    body = json.dumps(request | {"secret_ref": "billing"}).encode()
    _, again = sent(Kept("id-1", body), url="https://other.example/hooks")
    assert (again["secret_ref"], "hmac_secret" in again) == ("billing", False)


def test_n7_a_second_publish_of_the_same_replay_can_be_recognised() -> None:
    first, _ = sent(kept(), reference="7")
    second, _ = sent(kept(), reference="7")
    other, _ = sent(kept(), reference="8")
    chain = ("x-ringback-chain", "x-ringback-step")
    assert [first[name] for name in chain] == [second[name] for name in chain]
    assert first["x-ringback-chain"] != other["x-ringback-chain"]


def ticket_for(client_id: str, issuer: str = "ringback") -> str:
    claims = json.dumps({"iss": issuer, "aud": client_id, "exp": 1}).encode()
    return f"e30.{urlsafe_b64encode(claims).decode().rstrip('=')}.c2ln"


def test_n7_ringbacks_own_ticket_is_renewed() -> None:
    """It is valid for hours, and a replay can follow after days."""
    renewed = {"ticket": ("X-Service-Ticket", "new")}
    old = {"x-service-ticket": ticket_for("shop"), "X-Tenant": "7"}
    _, body = sent(kept(headers=old), **renewed)
    assert body["headers"] == {"x-service-ticket": "new", "X-Tenant": "7"}
    unchanged: tuple[tuple[str, dict[str, Any]], ...] = (
        (ticket_for("another"), renewed),
        (ticket_for("shop", issuer="shop"), renewed),
        ("not.a-ticket.", renewed),
        ("opaque", renewed),
        (ticket_for("shop"), {}),
        (ticket_for("shop"), renewed | {"url": "https://other.example/hooks"}),
    )
    for ticket, arguments in unchanged:
        _, body = sent(kept(headers={"X-Service-Ticket": ticket}), **arguments)
        assert body["headers"] == {"X-Service-Ticket": ticket}


@pytest.mark.parametrize(
    ("request_", "arguments"),
    [
        (kept(), {"client_id": "another"}),
        (kept(), {"client_id": ""}),
        (kept(target_url="ftp://example.com/"), {}),
        (kept(unsigned=True), {}),
        (Kept("id-1", b"[]"), {}),
        (Kept("id-1", b"{"), {}),
    ],
)
def test_n7_what_cannot_be_sent_again_is_refused(request_: Kept, arguments: dict[str, Any]) -> None:
    with pytest.raises(NotReplayableError) as refused:
        replay(request_, **{"client_id": "shop", "replay_id": "job-1"} | arguments)
    assert CANARY not in str(refused.value)


def test_n7_a_kept_request_is_opened_with_its_key_only() -> None:
    sealed = SecretCipher([KEY]).encrypt(pack("id-1", b'{"a": 1}\n'))
    assert opened(SecretCipher([bytes(32), KEY]), sealed) == Kept("id-1", b'{"a": 1}\n')
    for cipher in (None, SecretCipher([bytes(32)])):
        with pytest.raises(NotReplayableError):
            opened(cipher, sealed)


def test_n7_secrets_are_redacted_for_people() -> None:
    request = kept(
        hmac_secret=[CANARY, CANARY],
        headers={
            "Authorization": CANARY,
            "X-Service-Ticket": CANARY,
            "X-Api-Key": CANARY,
            "Cookie": CANARY,
            "X-Tenant": "7",
        },
        target_url=f"https://example.com/hooks?access_token={CANARY}&page=2",
    )
    shown = redacted(request)
    assert CANARY not in json.dumps(shown)
    assert shown["headers"]["X-Tenant"] == "7"
    assert shown["target_url"] == "https://example.com/hooks?access_token=******&page=2"
    assert shown["payload"] == REQUEST["payload"]
