"""Output that cannot be written, interrupted commands, and the words of errors."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import aio_pika
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from shared.registry import SERVICES
from tests.fakes.broker_client import send_callback
from tests.fakes.command import ROOT, Output, ringback, start
from tests.fakes.declaring import declare_queues
from tests.fakes.held_broker import held_broker
from tests.fakes.service import NO_AUTHORITIES, running
from tests.fakes.waiting import until

# Their ids are longer than a pipe, so `send` cannot write all before its reader ends.
COUNT = 12_000


@pytest.fixture
def callbacks(tmp_path: Path) -> Path:
    file = tmp_path / "callbacks.jsonl"
    lines = [json.dumps(send_callback("http://example.com/", id=f"c{n}")) for n in range(COUNT)]
    file.write_text("\n".join(lines))
    return file


async def shell(line: str, amqp_url: str, **settings: str) -> Output:
    """Run a line of bash, in which `$R` is the command; return the exit code of the first part."""
    return await asyncio.to_thread(_shell, line, {"RINGBACK_AMQP_URL": amqp_url, **settings})


def _shell(line: str, environment: dict[str, str]) -> Output:
    done = subprocess.run(
        ("/bin/bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"),
        env={
            "PATH": "/usr/bin:/bin",
            "R": f"{sys.executable} -m services",
            **NO_AUTHORITIES,
            **environment,
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return Output(done.returncode, done.stdout, done.stderr)


async def test_finding_d11_a_closed_pipe_is_not_a_lost_connection(amqp_url: str) -> None:
    """Finding D11: `doctor | head -1` reported a lost connection."""
    output = await shell("$R doctor | head -1", amqp_url)
    assert output.out.count("\n") == 1
    assert (output.code, output.err) == (1, "")


async def test_finding_d11_a_full_disk_is_named_without_a_traceback(amqp_url: str) -> None:
    """Finding D11: `dead list` and others to a full device ended with a traceback."""
    await declare_queues(amqp_url, "callbacks")
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        await channel.default_exchange.publish(aio_pika.Message(b"{}"), "callbacks.dead")

    for command in (
        "doctor",
        "dead list callbacks",
        "dead list callbacks --json",
        "config example",
    ):
        output = await shell(f"$R {command} > /dev/full", amqp_url)
        assert output.code == 1
        assert "Error: Cannot write the output: No space left on device." in output.err
        assert "Traceback" not in output.err
        assert "Connection lost" not in output.err


async def test_finding_d11_a_list_from_the_gateway_to_a_full_disk_has_no_traceback(
    amqp_url: str,
) -> None:
    """Finding D11: `schedule list` to a full device ended with a traceback."""

    async def list_(_: web.Request) -> web.Response:
        item = dict.fromkeys(("run_at", "group_key", "event_key", "last_error"))
        item |= {"id": "c-1", "status": "scheduled", "attempts": 0}
        return web.json_response({"items": [item], "next_cursor": None})

    app = web.Application()
    app.router.add_get("/v1/callbacks", list_)
    async with TestServer(app, host="127.0.0.1") as server:
        output = await shell(f"$R schedule list --url {server.make_url('')} > /dev/full", amqp_url)
    assert (output.code, output.err) == (
        1,
        "Error: Cannot write the output: No space left on device.\n",
    )


async def test_finding_d11_send_stops_when_nobody_reads_the_ids(
    amqp_url: str, callbacks: Path
) -> None:
    """Finding D11: `send FILE | head -1` sent everything and exited with 0."""
    output = await shell(f"$R send SendCallback {callbacks} | head -1", amqp_url)

    assert output.code == 1
    assert "Cannot write the output: Broken pipe." in output.err
    sent = re.search(rf"(\d+) of {COUNT} messages were confirmed.", output.err)
    assert sent
    assert 1 <= int(sent[1]) < COUNT
    async with await aio_pika.connect(amqp_url) as connection:
        queue = await (await connection.channel()).declare_queue("callbacks", passive=True)
        assert queue.declaration_result.message_count == int(sent[1])


async def test_finding_d11_ctrl_c_in_send_prints_how_many_messages_were_confirmed(
    amqp_url: str, callbacks: Path
) -> None:
    """Finding D11: it printed only "Aborted!"."""
    async with held_broker(amqp_url, after=300_000) as (held_url, released):
        command = await start("send", "SendCallback", str(callbacks), amqp_url=held_url)
        assert command.stdout
        assert await command.stdout.readline()  # the first is confirmed

        command.send_signal(signal.SIGINT)
        released.set()
        out, err = await asyncio.wait_for(command.communicate(), 30)

    assert command.returncode == 1
    count = 1 + len(out.splitlines())
    assert count < COUNT
    assert f"interrupted. {count} of {COUNT} messages were confirmed." in err.decode()
    assert "Aborted!" not in err.decode()


async def test_finding_d11_a_wrong_virtual_host_and_address_are_named(amqp_url: str) -> None:
    """Finding D11: a wrong vhost printed an object, a wrong address a regular expression."""
    wrong = f"{amqp_url.rpartition('/')[0]}/no-such-vhost"
    output = await ringback("dead", "list", "callbacks", amqp_url=wrong)
    assert "the virtual host in the URL does not exist, or this user may not use it" in output.err
    assert "object at 0x" not in output.err

    mail = json.dumps({"to": "nobody", "subject": "s", "text": "t"})
    output = await ringback("send", "SendEmail", amqp_url=amqp_url, stdin=mail)
    assert "  to: is not an e-mail address such as user@mail.com\n" in output.err


async def test_finding_d11_a_variable_that_is_no_setting_is_reported(
    amqp_url: str, tmp_path: Path
) -> None:
    """Finding D11: RINGBACK_BOGUS=1 went unnoticed."""
    output = await ringback("doctor", amqp_url=amqp_url, RINGBACK_BOGUS="1")
    assert "Warning: RINGBACK_BOGUS is not a setting." in output.out

    with running(tmp_path, amqp_url, {"RINGBACK_CALLBAK_TIMEOUT": "5"}) as service:
        await until(lambda: service.logged("setting unknown", variable="RINGBACK_CALLBAK_TIMEOUT"))


async def test_finding_d11_help_breaks_no_word() -> None:
    """Finding D11: `run --help` broke the word delivery."""
    output = await ringback("run", "--help", amqp_url=None)
    assert f"{', '.join(SERVICES)}." in " ".join(output.out.split())
