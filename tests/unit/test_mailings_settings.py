"""The settings of mailings."""

from typing import Any

import pytest
from pydantic import ValidationError

from services.mailings.settings import MailingsSettings


def test_finding_c7_tokens_of_sources_are_read_and_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RINGBACK_SOURCES", "auth, movies=http://10.0.0.7:8000")
    monkeypatch.setenv(
        "RINGBACK_MAILINGS_SOURCE_TOKENS",
        '{"auth:8443": "s3cret-1", "movies": "Basic s3cret-2"}',
    )

    settings = MailingsSettings()

    assert settings.credentials == {"auth:8443": "Bearer s3cret-1", "movies": "Basic s3cret-2"}
    assert "s3cret" not in f"{settings!r} {settings}"


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        ({"other": "s3cret"}, "'other' is not in RINGBACK_SOURCES"),
        ({"movies:81": "s3cret"}, "'movies:81' is not in RINGBACK_SOURCES"),
        ({"auth": ""}, "must be a token"),
        ({"auth": "s3cret\r\nX: y"}, "must be a token"),
        ({"auth": "s3cret s3cret s3cret"}, "must be a token"),
        ({"auth": 7}, "valid string"),
    ],
)
def test_finding_c7_invalid_tokens_are_rejected(tokens: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError) as raised:
        MailingsSettings(sources={"auth": "", "movies": "http://10.0.0.7"}, source_tokens=tokens)

    assert reason in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_finding_c7_the_case_of_a_host_with_a_token_does_not_matter() -> None:
    tokens: dict[str, Any] = {"AUTH": "a-token"}
    settings = MailingsSettings(sources={"Auth": ""}, source_tokens=tokens)
    assert settings.credentials == {"auth": "Bearer a-token"}
