"""config.example.toml is generated from the settings and valid."""

import json
import re
from pathlib import Path

import pytest
from joserfc.jwk import ECKey

from services.cli.config import as_toml
from services.cli.run import settings_models
from shared.settings import InvalidSettingsError, load_shared

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
MODELS = settings_models()


def test_the_example_is_up_to_date() -> None:
    assert EXAMPLE.read_text() == as_toml(), (
        "run: .venv/bin/ringback config example > config.example.toml"
    )


def test_every_line_of_the_example_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "ringback.toml"
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps({"keys": [ECKey.generate_key("P-256", private=False).as_dict()]}))
    (tmp_path / "rules.toml").touch()
    (tmp_path / "templates").mkdir()
    text = re.sub(r"(?m)^#(?=\w+ = )", "", EXAMPLE.read_text())
    file.write_text(text.replace("/etc/ringback/", f"{tmp_path}/"))

    settings = load_shared(MODELS, file=file)

    assert settings.metrics_port == 9101  # the example of a setting without a default


def test_all_faults_of_all_models_are_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ringback.toml"
    file.write_text(
        'log_level = "LOUD"\nspeed = 9\n'
        "[callback]\nprefetch = 0\n[mailer]\nx = 1\n[sandbox]\nport = -1\n"
    )
    monkeypatch.setenv("RINGBACK_AMQP_URL", "http://broker")
    monkeypatch.setenv("RINGBACK_CALLBACK_SECRETS", '{"a": "canary", "b": 7}')

    with pytest.raises(InvalidSettingsError) as caught:
        load_shared(MODELS, file=file)

    named = "\n".join(caught.value.faults)
    for place in (
        "log_level",
        "speed",
        "RINGBACK_AMQP_URL",
        "[callback] prefetch",
        "RINGBACK_CALLBACK_SECRETS",
        "[mailer]",
        "[sandbox] port",
    ):
        assert place in named
    assert "canary" not in named
