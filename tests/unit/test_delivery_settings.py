"""Invalid configuration of delivery is named before anything connects."""

from pathlib import Path

import pytest

from services.delivery.settings import DeliverySettings
from shared.settings import InvalidSettingsError, load, load_shared

URL = "https://sms.example.com"


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def faults(monkeypatch: pytest.MonkeyPatch, **given: str) -> str:
    for name, value in given.items():
        monkeypatch.setenv(f"RINGBACK_{name}", value)
    with pytest.raises(InvalidSettingsError) as caught:
        load_shared([DeliverySettings])
    return "\n".join(caught.value.faults)


@pytest.mark.parametrize("key", [{}, {"SMS_KEY": ""}])
def test_e6_a_gateway_needs_a_key(monkeypatch: pytest.MonkeyPatch, key: dict[str, str]) -> None:
    text = faults(monkeypatch, SMS_URL=URL, **key)
    assert "sms_key" in text.lower()
    assert "not set, but RINGBACK_SMS_URL is" in text


def test_e6_a_gateway_with_a_key_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGBACK_SMS_URL", f"{URL}/")
    monkeypatch.setenv("RINGBACK_SMS_KEY", "k")
    settings = load(DeliverySettings)
    assert settings.sms_url == URL
    assert settings.sms_key is not None
    assert repr(settings.sms_key) != "k"


@pytest.mark.parametrize(
    "url",
    ["https://user:c4n4ry@sms.example.com", f"{URL}?key=c4n4ry", "sms.example.com", "ftp://x"],
)
def test_an_invalid_gateway_url_is_named(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    text = faults(monkeypatch, SMS_URL=url, SMS_KEY="k")
    assert "RINGBACK_SMS_URL" in text
    assert "c4n4ry" not in text


def test_every_invalid_setting_of_delivery_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    text = faults(
        monkeypatch, DELIVERY_SMTP_TLS="maybe", DELIVERY_SMTP_CONNECTIONS="0", SMTP_URL="mail:25"
    )
    for name in ("DELIVERY_SMTP_TLS", "DELIVERY_SMTP_CONNECTIONS", "SMTP_URL"):
        assert f"RINGBACK_{name}" in text


def test_a_setting_with_its_own_variable_is_in_the_table_of_the_service(tmp_path: Path) -> None:
    file = tmp_path / "ringback.toml"
    file.write_text(f'[delivery]\nsms_url = "{URL}"\nsms_key = "k"\n')
    assert load(DeliverySettings, file=file).sms_url == URL

    file.write_text('[delivery]\nsmtp_url = "mail:25"\n')
    with pytest.raises(InvalidSettingsError, match=r"\[delivery\] smtp_url: must look like smtp"):
        load(DeliverySettings, file=file)


@pytest.mark.parametrize("tls", ["offered", "off"])
def test_finding_c13_a_password_requires_tls(monkeypatch: pytest.MonkeyPatch, tls: str) -> None:
    text = faults(
        monkeypatch, SMTP_URL="smtp://shop:c4n4ry@mail.example.com:587", DELIVERY_SMTP_TLS=tls
    )
    assert "RINGBACK_DELIVERY_SMTP_TLS" in text
    assert "must be required" in text
    assert "c4n4ry" not in text


@pytest.mark.parametrize(
    ("url", "tls"),
    [
        ("smtp://shop:secret@mail.example.com:587", "required"),
        ("smtp://mail.example.com", "offered"),
        ("smtps://shop:secret@mail.example.com", "offered"),
    ],
)
def test_finding_c13_tls_is_required_by_default_with_a_password(
    monkeypatch: pytest.MonkeyPatch, url: str, tls: str
) -> None:
    monkeypatch.setenv("RINGBACK_SMTP_URL", url)
    assert load(DeliverySettings).smtp_tls == tls
