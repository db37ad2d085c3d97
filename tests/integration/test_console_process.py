"""The console as a process: its start, its sign-in, its end."""

import signal
from pathlib import Path

import aiohttp

from services.console.app import SCHEMA
from shared.postgres.migrations import migrate
from tests.fakes.console import SECRET, Browser, issuer_of
from tests.fakes.sandbox import running_sandbox
from tests.fakes.service import START_SECONDS, running
from tests.fakes.waiting import until

RUN_CONSOLE = ("-m", "services", "run", "console", "--metrics-port", "0")


async def test_m11_without_an_issuer_it_does_not_start(
    amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    settings = {"RINGBACK_DATABASE_URL": database_url, "RINGBACK_CONSOLE_PORT": "0"}
    with running(tmp_path, amqp_url, settings, RUN_CONSOLE) as console:
        assert await console.exit_code() == 2
        assert "RINGBACK_OIDC_ISSUER: not set" in console.output


async def test_m11_wrong_addresses_are_reported_together(
    amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    settings = {
        "RINGBACK_DATABASE_URL": database_url,
        "RINGBACK_OIDC_ISSUER": "http://id.example.com",
        "RINGBACK_CONSOLE_URL": "https://example.com/ringback",
        "RINGBACK_OIDC_ROLES": '{"ops": "root"}',
    }
    with running(tmp_path, amqp_url, settings, RUN_CONSOLE) as console:
        assert await console.exit_code() == 2
        assert "RINGBACK_OIDC_ISSUER: must use https" in console.output
        assert "RINGBACK_CONSOLE_URL: must not have a path" in console.output
        assert "RINGBACK_OIDC_ROLES" in console.output


async def test_m11_a_process_signs_users_in_and_names_them_in_no_log(
    amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    await migrate(database_url, SCHEMA)
    async with running_sandbox() as sandbox:
        settings = {
            "RINGBACK_DATABASE_URL": database_url,
            "RINGBACK_CONSOLE_PORT": "0",
            "RINGBACK_OIDC_ISSUER": issuer_of(sandbox),
            "RINGBACK_OIDC_CLIENT_ID": "ringback-console",
            "RINGBACK_OIDC_CLIENT_SECRET": SECRET,
            "RINGBACK_LOG_LEVEL": "DEBUG",
        }
        with running(tmp_path, amqp_url, settings, RUN_CONSOLE) as console:
            await until(
                lambda: console.exited() or console.logged("console on port"), START_SECONDS
            )
            assert not console.exited(), console.output
            await console.ready()
            origin = f"http://127.0.0.1:{console.logged('console on port')[0]['port']}"
            jar = aiohttp.CookieJar(unsafe=True, treat_as_secure_origin=origin)
            async with aiohttp.ClientSession(cookie_jar=jar) as http:
                shown = await Browser(origin, http).sign_in("omar")
                assert shown.status == 200
                assert "omar, operator" in shown.text
                secrets = [morsel.value for morsel in jar]
            assert await console.metric("ringback_console_sign_ins_total", result="signed_in") == 1
            [line] = console.logged("user signed in")
            assert (line["subject"], line["role"]) == ("sandbox-omar", "operator")
            for secret in (*secrets, SECRET, shown.csrf, "Omar", "omar@"):
                assert secret not in console.output
            console.signal(signal.SIGTERM)
            assert await console.exit_code() == 0
