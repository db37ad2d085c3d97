"""Keys for development, and the tickets they sign."""

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr

from deploy.local import daemon
from services.__main__ import main
from services.cli.keys import development_key, development_keys
from shared.security.encryption import SecretCipher
from shared.security.settings import SecuritySettings
from shared.security.tickets import TicketVerifier

KEY = "canary-0123456789-0123456789-0123"


def ticket(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["ticket", *arguments])


def test_keys_are_created_once_and_readable_by_their_owner_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(daemon, "LOCAL_DIRECTORY", tmp_path)
    assert development_key("ticket_key") is None
    created = development_keys(SecuritySettings(), tmp_path)
    assert development_keys(SecuritySettings(), tmp_path) == created
    assert development_key("ticket_key") == created["RINGBACK_TICKET_KEY"]
    assert SecretCipher.of(created["RINGBACK_SECRETS_KEY"])
    files = list((tmp_path / "keys").iterdir())
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 3


# S9
def test_finding_a15_the_keys_command_creates_a_key_and_shows_its_public_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    created = CliRunner().invoke(main, ["keys", "new"]).stdout
    monkeypatch.setenv("RINGBACK_TICKET_SIGNING_KEY", created)
    (shown,) = json.loads(CliRunner().invoke(main, ["keys", "jwks"]).stdout)["keys"]
    private = json.loads(created)
    assert shown == {name: value for name, value in private.items() if name != "d"}
    monkeypatch.delenv("RINGBACK_TICKET_SIGNING_KEY")
    missing = CliRunner().invoke(main, ["keys", "jwks"])
    assert missing.exit_code == 1
    assert "ringback keys new" in missing.output


def test_configured_keys_are_not_replaced(tmp_path: Path) -> None:
    configured = SecuritySettings(ticket_key=SecretStr(KEY))
    assert set(development_keys(configured, tmp_path)) == {"RINGBACK_SECRETS_KEY"}


# S9
def test_s9_the_ticket_command_prints_a_valid_ticket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGBACK_TICKET_KEY", KEY)
    assert TicketVerifier(KEY).verify(ticket("shop").stdout.strip()) == "shop"
    body = json.loads(ticket("shop", "--expires-in", "60", "--json").stdout)
    assert TicketVerifier(KEY).verify(body["ticket"]) == "shop"
    assert body["client_id"] == "shop"


def test_an_invalid_client_id_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGBACK_TICKET_KEY", KEY)
    result = ticket("x" * 256)
    assert result.exit_code == 1
    assert "1 to 255 characters" in result.output


def test_without_a_configured_key_the_key_of_ringback_up_signs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RINGBACK_TICKET_KEY", raising=False)
    monkeypatch.setattr(daemon, "LOCAL_DIRECTORY", tmp_path)
    missing = ticket("shop")
    assert missing.exit_code == 1
    assert "RINGBACK_TICKET_KEY is not set" in missing.output

    created = development_keys(SecuritySettings(), tmp_path)
    result = ticket("shop")
    assert TicketVerifier(created["RINGBACK_TICKET_KEY"]).verify(result.stdout.strip()) == "shop"
    assert "the key of `ringback up`" in result.stderr
