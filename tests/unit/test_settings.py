"""H7: the environment overrides the file, all faults are reported, no secret is shown."""

import base64
import os
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic_settings import BaseSettings

from services.__main__ import main
from services.callback.settings import CallbackSettings
from services.ingestion.settings import IngestionSettings
from services.mailings.settings import MailingsSettings
from shared.amqp.addresses import addresses
from shared.process.configuration import InvalidConfigurationError, configured_table
from shared.security.settings import SecuritySettings
from shared.settings import InvalidSettingsError, Required, Settings, load, load_shared
from shared.topology import QueueType

CANARY = "c4n4ry"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty settings file, with no settings in the environment."""
    for name in list(os.environ):
        if name.startswith("RINGBACK_"):
            monkeypatch.delenv(name)
    path = tmp_path / "ringback.toml"
    path.touch()
    return path


def faults(file: Path, model: type[BaseSettings] = CallbackSettings) -> list[str]:
    with pytest.raises(InvalidSettingsError) as caught:
        load(model, file=file)
    assert CANARY not in str(caught.value)
    assert CANARY not in repr(caught.value.__cause__)
    return list(caught.value.faults)


# H7
def test_h7_everything_has_a_default(file: Path) -> None:
    shared, own = load(Settings, file=file), load(CallbackSettings, file=file)
    assert shared.amqp_url == "amqp://guest:guest@127.0.0.1:5672/"
    assert (shared.log_level, shared.log_format) == ("INFO", "json")
    assert shared.queue_type is QueueType.QUORUM
    assert own.allowed_networks == ()
    assert own.give_up_after == 24 * 60 * 60
    assert load(Settings, file=file.with_name("missing.toml")) == shared


def test_finding_d2_several_addresses_are_accepted(file: Path) -> None:
    urls = "amqp://a:b@one:5672/shop, amqps://a:b@two/shop,amqp://three/shop"
    file.write_text(f'amqp_url = "{urls}"')
    assert addresses(load(Settings, file=file).amqp_url) == (
        "amqp://a:b@one:5672/shop",
        "amqps://a:b@two/shop",
        "amqp://three/shop",
    )


@pytest.mark.parametrize(
    ("urls", "fault"),
    [
        (f"amqp://one/,http://a:{CANARY}@two/,amqp://three/", "address 2 must look like amqp://"),
        ("amqp://one/,two:5672", "address 2 must look like amqp://"),
        ("amqp://one/,", "address 2 must look like amqp://"),
        (f"amqp://a:{CANARY},{CANARY}@one/", "address 1 must look like amqp://"),
        (f"amqp://a:{CANARY}/{CANARY}@one/", "must look like amqp://"),
        (f"amqp://a:{CANARY}@one:port/,amqp://two/", "address 1 must look like amqp://"),
        (f"amqp://a:{CANARY}@one/shop,amqp://a:{CANARY}@two/", "the same virtual host"),
    ],
)
def test_finding_d2_a_faulty_address_is_named_by_its_number_only(
    file: Path, urls: str, fault: str
) -> None:
    file.write_text(f'amqp_url = "{urls}"')
    [found] = faults(file, Settings)
    assert fault in found


# H7
def test_h7_the_environment_overrides_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(
        'amqp_url = "amqp://file/"\nlog_level = "DEBUG"\n[callback]\ntimeout = 3\nprefetch = 7\n'
    )
    monkeypatch.setenv("RINGBACK_AMQP_URL", "amqps://environment/")
    monkeypatch.setenv("RINGBACK_CALLBACK_TIMEOUT", "4.5")
    monkeypatch.setenv("RINGBACK_QUEUE_TYPE", "classic")
    shared, own = load(Settings, file=file), load(CallbackSettings, file=file)
    assert (shared.amqp_url, shared.log_level) == ("amqps://environment/", "DEBUG")
    assert shared.queue_type is QueueType.CLASSIC
    assert (own.timeout, own.prefetch) == (4.5, 7)


def test_n14_the_standard_variable_of_opentelemetry_turns_tracing_on(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(Settings, file=file).otlp_endpoint is None
    file.write_text('otlp_endpoint = "http://file:4318/"')
    assert load(Settings, file=file).otlp_endpoint == "http://file:4318"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://environment:4318")
    assert load(Settings, file=file).otlp_endpoint == "https://environment:4318"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")  # as in docker-compose.yml
    assert load(Settings, file=file).otlp_endpoint is None


# H7
def test_h7_all_faults_are_reported_at_once_with_their_places(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('[callback]\ntimeout = "soon"\nprefetch = 0\ntimeuot = 5\n')
    monkeypatch.setenv("RINGBACK_CALLBACK_LANE_LIMIT", "-1")
    reason = "unable to parse string as a number"
    assert sorted(faults(file)) == sorted(
        [
            "RINGBACK_CALLBACK_LANE_LIMIT: Input should be greater than or equal to 1",
            f"{file} [callback] prefetch: Input should be greater than or equal to 1",
            f"{file} [callback] timeout: Input should be a valid number, " + reason,
            f"{file} [callback] timeuot: this setting does not exist",
        ]
    )


# H7
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("no_such = 1", " no_such: this setting does not exist"),
        ('amqp_url = "http://h/"', "must look like amqp://user:password@host:5672/vhost"),
        ('amqp_url = "amqp:///"', "must look like amqp://user:password@host:5672/vhost"),
        (f'amqp_url = "amqp://u:{CANARY}/x@h"', " amqp_url: "),
        (f'amqp_url = "amqp://u:{CANARY}@h:99999/"', " amqp_url: "),
        (f'amqp_url = "amqp://[{CANARY}"', " amqp_url: "),
        (f'database_url = "mysql://u:{CANARY}@h/x"', "must look like postgresql://"),
        ('log_level = "LOUD"', " log_level: Input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ('log_format = "xml"', " log_format: Input should be 'json' or 'text'"),
        ("metrics_port = 70000", " metrics_port: Input should be less than or equal to 65535"),
        ("shutdown_timeout = 0", " shutdown_timeout: Input should be greater than 0"),
        ('otlp_endpoint = "collector:4317"', "must look like http://127.0.0.1:4318"),
        ('queue_type = "stream"', " queue_type: Input should be 'quorum' or 'classic'"),
        ("amqp_url = ", "Invalid value (at "),
        ("= 1", "Invalid statement (at "),
        ("log_level = 'INFO'\nlog_level = 'INFO'", "Cannot overwrite a value (at "),
    ],
)
def test_h7_an_invalid_shared_setting_is_explained(file: Path, text: str, fault: str) -> None:
    file.write_text(text)
    [reported] = faults(file, Settings)
    assert reported.startswith(str(file))
    assert fault in reported


# H7
def test_h7_a_file_that_is_not_text_is_reported(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    assert str(file) in faults(file)[0]


# H7
def test_h7_a_service_must_be_a_table(file: Path) -> None:
    file.write_text("callback = 5")
    assert faults(file) == [f"{file}: callback must be a table: [callback]"]


# H7
def test_h7_faults_of_several_models_are_reported_together(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('log_level = "LOUD"\n[calback]\ntimeout = 1\n[callback]\nprefetch = 0\n')
    with pytest.raises(InvalidSettingsError) as caught:
        load_shared([CallbackSettings], file=file)
    assert [fault.split(": ")[0] for fault in caught.value.faults] == [
        str(file),
        f"{file} log_level",
        f"{file} [callback] prefetch",
    ]
    assert "[calback]" in caught.value.faults[0]
    monkeypatch.setenv("RINGBACK_LOG_LEVEL", "DEBUG")
    file.write_text("")
    assert load_shared([CallbackSettings], file=file).log_level == "DEBUG"


def test_a_command_that_needs_one_table_reports_the_shared_faults_too(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('log_levle = "INFO"\n[callbak]\n[callback]\nprefetch = 0\n')
    monkeypatch.chdir(file.parent)

    with pytest.raises(InvalidConfigurationError) as caught:
        configured_table(CallbackSettings)

    assert caught.value.exit_code == 2
    assert all(each in caught.value.message for each in ("log_levle", "[callbak]", "prefetch"))


# H7
def test_h7_networks_may_be_separated_by_commas(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    monkeypatch.setenv("RINGBACK_CALLBACK_ALLOWED_NETWORKS", " 10.0.0.0/8 ,fd00::/8, ")
    assert load(CallbackSettings, file=file).allowed_networks == expected
    monkeypatch.delenv("RINGBACK_CALLBACK_ALLOWED_NETWORKS")
    file.write_text('[callback]\nallowed_networks = ["10.0.0.0/8", "fd00::/8"]\n')
    assert load(CallbackSettings, file=file).allowed_networks == expected
    file.write_text('[callback]\nallowed_networks = "127.0.0.1"\n')
    assert load(CallbackSettings, file=file).allowed_networks == (ip_network("127.0.0.1/32"),)


# H7
@pytest.mark.parametrize(
    "value", ["10.0.0.1/8", "everything", "10.0.0.0/8;fd00::/8", "10.0.0.0/33"]
)
def test_h7_an_invalid_network_is_reported_with_the_valid_format(
    file: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("RINGBACK_CALLBACK_ALLOWED_NETWORKS", value)
    [fault] = faults(file)
    assert fault.startswith("RINGBACK_CALLBACK_ALLOWED_NETWORKS: ")
    assert fault.endswith("; write a network such as 10.0.0.0/8")


def test_h7_every_invalid_network_is_reported(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGBACK_CALLBACK_ALLOWED_NETWORKS", "10.0.0.0/33,127.0.0.0/8,everything")
    [fault] = faults(file)
    assert "10.0.0.0/33" in fault
    assert "everything" in fault


def test_h7_networks_are_a_list_or_a_text(file: Path) -> None:
    file.write_text("[callback]\nallowed_networks = 10\n")
    assert "separated by commas" in faults(file)[0]


def test_h7_finding_b20_allowed_ports_are_a_list_or_separated_by_commas(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(CallbackSettings, file=file).allowed_ports == ()
    file.write_text("[callback]\nallowed_ports = [443]\n")
    assert load(CallbackSettings, file=file).allowed_ports == (443,)
    monkeypatch.setenv("RINGBACK_CALLBACK_ALLOWED_PORTS", " 80,443 ,")
    assert load(CallbackSettings, file=file).allowed_ports == (80, 443)
    monkeypatch.setenv("RINGBACK_CALLBACK_ALLOWED_PORTS", "80,https,70000")
    assert len(faults(file)) == 2


# H2, H7
def test_a_secret_has_a_name_and_one_or_more_values(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "RINGBACK_CALLBACK_SECRETS", f'{{"shop": "{CANARY}", "bank": ["{CANARY}", "{CANARY}-old"]}}'
    )
    own = load(CallbackSettings, file=file)
    assert own.secrets == {"shop": CANARY, "bank": [CANARY, f"{CANARY}-old"]}
    assert CANARY not in repr(own) + str(own)


# Row 31
@pytest.mark.parametrize(
    "value",
    [
        f'{{"shop": "{CANARY}',
        CANARY,
        f'["{CANARY}"]',
        f'{{"shop": {{"{CANARY}": 1}}}}',
        f'{{"shop": ["{CANARY}", 5]}}',
    ],
)
def test_row_31_malformed_secrets_are_not_shown(
    file: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("RINGBACK_CALLBACK_SECRETS", value)
    assert any("secrets" in fault.lower() for fault in faults(file))


def test_row_31_malformed_secrets_in_the_file_are_not_shown(file: Path) -> None:
    for text in (
        f'[callback.secrets]\nshop = ["{CANARY}", 5]\n',
        f'[callback]\nsecrets = "{CANARY}"\n',
        f'[callback.secrets]\nshop = "{CANARY}\n',
        f"[callback.secrets]\nshop = {CANARY}\n",
    ):
        file.write_text(text)
        assert faults(file)


# Row 31
@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("ticket_key", f"-----BEGIN PUBLIC KEY-----{CANARY}", "must be a secret that both sides"),
        ("ticket_key", f'{{"kty": "OKP", "x": "{CANARY}"}}', "must be a secret that both sides"),
        ("ticket_signing_key", CANARY, "must be keys without a password, as PEM"),
        ("secrets_key", CANARY, "key 1 must be 32 bytes in base64"),
        ("ticket_jwks_file", "/missing/jwks.json", "cannot read /missing/jwks.json"),
    ],
)
def test_row_31_an_invalid_key_is_reported_but_not_shown(
    file: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, fault: str
) -> None:
    monkeypatch.setenv(f"RINGBACK_{name.upper()}", value)
    [reported] = faults(file, SecuritySettings)
    assert reported.startswith(f"RINGBACK_{name.upper()}: ")
    assert fault in reported


# Row 31
def test_row_31_keys_are_not_shown(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGBACK_TICKET_KEY", CANARY)
    key = base64.b64encode(CANARY.ljust(32).encode()[:32]).decode()
    monkeypatch.setenv("RINGBACK_SECRETS_KEY", f"{key},{key}")
    settings = load(SecuritySettings, file=file)
    shown = f"{settings!r} {settings} {settings.model_dump_json()}"
    assert CANARY not in shown
    assert key not in shown


def test_empty_keys_are_not_set(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TICKET_KEY", "TICKET_JWKS_FILE", "SECRETS_KEY"):
        monkeypatch.setenv(f"RINGBACK_{name}", "")
    settings = load(SecuritySettings, file=file)
    assert (settings.ticket_key, settings.ticket_jwks_file, settings.secrets_key) == (None,) * 3


def test_a_service_that_stores_data_needs_a_database(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        InvalidSettingsError, match="RINGBACK_DATABASE_URL: not set, but required by shop"
    ):
        load_shared(storing=["shop"], file=file)
    file.write_text('database_url = "postgresql://u@h/x"')
    assert load_shared(storing=["shop"], file=file).database_url == "postgresql://u@h/x"
    file.write_text("")
    monkeypatch.setenv("RINGBACK_DATABASE_URL", "postgresql://u@h/y")
    assert load_shared(storing=["shop"], file=file).database_url == "postgresql://u@h/y"


def test_a_missing_required_setting_is_reported_with_all_other_faults(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    required: Required = {(SecuritySettings, "secrets_key"): "Create a key."}
    monkeypatch.setenv("RINGBACK_LOG_LEVEL", "loud")
    monkeypatch.setenv("RINGBACK_SECRETS_KEY", "")  # as in docker-compose.yml
    with pytest.raises(InvalidSettingsError) as raised:
        load_shared([SecuritySettings], storing=["shop"], required=required, file=file)
    log_level, database, key = raised.value.faults
    assert log_level.startswith("RINGBACK_LOG_LEVEL: ")
    assert database.startswith("RINGBACK_DATABASE_URL: not set")
    assert key == "RINGBACK_SECRETS_KEY: not set. Create a key."
    monkeypatch.delenv("RINGBACK_LOG_LEVEL")
    monkeypatch.setenv("RINGBACK_SECRETS_KEY", base64.b64encode(bytes(32)).decode())
    load_shared([SecuritySettings], required=required, file=file)
    monkeypatch.delenv("RINGBACK_SECRETS_KEY")
    file.write_text(f'[security]\nsecrets_key = "{base64.b64encode(bytes(32)).decode()}"\n')
    load_shared([SecuritySettings], required=required, file=file)


@pytest.mark.parametrize("name", ["scheduler", "subscriptions", "console"])
def test_h7_every_fault_of_a_service_is_reported_before_it_starts(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # without a ringback.toml
    key = "RINGBACK_OIDC_ISSUER" if name == "console" else "RINGBACK_SECRETS_KEY"
    for each in ("RINGBACK_DATABASE_URL", key):
        monkeypatch.delenv(each, raising=False)
    result = CliRunner().invoke(main, ["run", name])
    assert result.exit_code == 2
    assert "RINGBACK_DATABASE_URL: not set" in result.stderr
    assert f"{key}: not set" in result.stderr


@pytest.mark.parametrize(
    ("model", "variable", "text"),
    [
        (IngestionSettings, "RINGBACK_RULES_FILE", "does not point to a file"),
        (MailingsSettings, "RINGBACK_TEMPLATES_DIR", "does not point to a directory"),
    ],
)
def test_e2_a_missing_file_or_directory_is_reported(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: type[BaseSettings],
    variable: str,
    text: str,
) -> None:
    monkeypatch.setenv(variable, str(file.parent / "missing"))
    [fault] = faults(file, model)
    assert fault.startswith(f"{variable}: ")
    assert text in fault


def test_e2_a_command_needs_no_files_of_services_that_run_elsewhere(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Kubernetes each pod runs `ringback migrate --check`, but only ingestion has the rules."""
    models = (IngestionSettings, MailingsSettings)
    monkeypatch.setenv("RINGBACK_RULES_FILE", str(file.parent / "missing"))
    monkeypatch.setenv("RINGBACK_TEMPLATES_DIR", str(file.parent / "missing"))
    load_shared(models, here=False, file=file)
    monkeypatch.setenv("RINGBACK_INGESTION_PREFETCH", "0")
    with pytest.raises(InvalidSettingsError) as raised:
        load_shared(models, here=False, file=file)
    assert [fault.partition(": ")[0] for fault in raised.value.faults] == [
        "RINGBACK_INGESTION_PREFETCH"
    ]
    with pytest.raises(InvalidSettingsError) as raised:
        load_shared(models, file=file)
    assert len(raised.value.faults) == 3


def test_a_service_without_the_settings_of_security_does_not_load_cryptography() -> None:
    """The libraries take 9 MB in each process."""
    program = (
        "import sys, services.callback.app\n"
        "from shared.process.configuration import unknown_variables\n"
        "unknown_variables()\n"
        "print(*{'cryptography', 'joserfc'} & sys.modules.keys())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.split() == []
