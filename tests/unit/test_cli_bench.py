"""`ringback bench`: what it counts, and what it refuses. The integration tests measure."""

import asyncio
import contextlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner, Result

from services.cli import bench as module
from services.cli.gateway import Gateway
from services.cli.load import MAX_BODY, NotAcceptedError, Receiver, Run, measure, receiving


def run(*arguments: str) -> Result:
    return CliRunner().invoke(module.bench, arguments)


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where there is no configuration and no private broker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RINGBACK_AMQP_URL", raising=False)


@pytest.mark.parametrize("url", ["http://ringback.example.com", "http://10.1.2.3:8080"])
def test_another_machine_is_loaded_only_after_a_confirmation(url: str) -> None:
    result = run(url, "--only", "http")
    assert result.exit_code == 2
    assert "--yes" in result.output


def test_a_remote_receiver_or_broker_needs_the_confirmation_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = run("http://127.0.0.1:1", "--only", "http", "--target", "http://10.0.0.1")
    assert (result.exit_code, "10.0.0.1" in result.output) == (2, True)
    monkeypatch.setenv("RINGBACK_AMQP_URL", "amqp://user:hidden@127.0.0.1/,amqp://u:hidden@far/")
    result = run("http://127.0.0.1:1")
    assert (result.exit_code, "far" in result.output) == (2, True)
    assert "hidden" not in result.output


def test_amqp_needs_the_broker_of_the_installation() -> None:
    result = run("http://127.0.0.1:1", "--only", "amqp")
    assert result.exit_code == 2
    assert "RINGBACK_AMQP_URL" in result.output


def test_a_gateway_that_is_down_is_named() -> None:
    result = run("http://127.0.0.1:1", "--only", "http")
    assert result.exit_code == 1
    assert "Cannot measure over HTTP: the first callback was not accepted" in result.output


@contextlib.contextmanager
def foreign_server(status: int, body: bytes) -> Iterator[str]:
    """Run a server that is not a gateway, and yield its URL. Every response is the same."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize("body", [b'{"ok": true}', b"[]", b'{"items": null}', b"<html>"])
def test_a_server_that_is_not_a_gateway_is_named(body: bytes) -> None:
    with foreign_server(200, body) as url:
        result = run(url, "--only", "http")
        assert (result.exit_code, type(result.exception)) == (1, SystemExit)
        assert f"Error: The server at {url} is not a gateway" in result.output


def test_a_redirect_accepts_nothing() -> None:
    with foreign_server(301, b"") as url:
        result = run(url, "--only", "http")
        assert result.exit_code == 1
        assert "the first callback was not accepted: status 301" in result.output


def test_the_text_of_a_foreign_error_does_not_control_the_terminal() -> None:
    with foreign_server(500, b'{"detail": "\\u001b[31mred"}') as url:
        result = run(url, "--only", "http")
        assert result.exit_code == 1
        assert "\\x1b[31mred" in result.output


@pytest.mark.parametrize("address", ["9000", "127.0.0.1:", "127.0.0.1:70000"])
def test_the_address_of_the_receiver_is_checked(address: str) -> None:
    assert run("http://127.0.0.1:1", "--listen", address).exit_code == 2


async def test_a_measurement_counts_repeats_losses_and_what_was_not_accepted() -> None:
    receiver, seen = Receiver(), Run(6)
    receiver.expect(seen)

    async def publish(each: Run, number: int) -> None:
        await asyncio.sleep(0)
        if number == 0:
            raise NotAcceptedError("status 503")
        if number > 2:  # arrives before it is accepted
            for _ in range(number - 2):
                assert b"200 OK" in receiver.receive(f"/{each.token}/{number}", 1e9)

    await measure(seen, publish, rate=None, in_flight=2, timeout=0.01)
    figures = seen.figures()
    assert (figures["accepted"], figures["received"]) == (5, 3)
    assert (figures["repeated"], figures["missing"]) == (0 + 1 + 2, 2)
    assert figures["errors"] == {"status 503": 1}
    assert seen.unpublished == 1


async def test_a_measurement_ends_when_the_last_callback_has_arrived() -> None:
    receiver, seen = Receiver(), Run(3)
    receiver.expect(seen)

    async def publish(each: Run, number: int) -> None:
        now = asyncio.get_running_loop().time
        asyncio.get_running_loop().call_later(
            0.01, lambda: receiver.receive(f"/any/{each.token}/{number}", now())
        )

    await asyncio.wait_for(measure(seen, publish, rate=1000, in_flight=1, timeout=600), 30)
    assert seen.figures()["missing"] == 0


@pytest.mark.parametrize("path", ["", "/", "/x", "/TOKEN/3", "/TOKEN/-1", "/TOKEN/x", "/other/0"])
def test_the_receiver_ignores_other_requests(path: str) -> None:
    receiver, seen = Receiver(), Run(3)
    receiver.expect(seen)
    assert b"404" in receiver.receive(path.replace("TOKEN", seen.token), 1.0)
    assert not any(seen.arrived)


async def test_all_callbacks_of_a_large_group_are_cancelled() -> None:
    class Slow(Gateway):
        paths: ClassVar[list[str]] = []

        async def request(self, method: str, path: str, **_: Any) -> Any:
            self.paths.append(f"{method} {path.partition('callbacks')[2]}")
            return {"next_cursor": "a b" if len(self.paths) < 2 else None}

    gateway = Slow("http://127.0.0.1:1", None)
    await module._cancel(gateway, Run(1))  # noqa: SLF001 - only an interrupt calls it
    assert gateway.paths == ["DELETE ?", "DELETE ?cursor=a+b"]


HEAD = b"POST / HTTP/1.1\r\nContent-Length: %s\r\n\r\n"


@pytest.mark.parametrize("length", [b"%d" % (MAX_BODY + 1), b"9" * 10_000])
async def test_the_receiver_closes_a_connection_with_a_large_body(length: bytes) -> None:
    async with receiving(Receiver(), "127.0.0.1", 0) as port, asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD % length)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()


async def test_the_receiver_keeps_few_responses_that_nobody_reads() -> None:
    async with receiving(Receiver(), "127.0.0.1", 0) as port, asyncio.timeout(30):
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)

        async def flood() -> None:
            while True:
                writer.write(HEAD % b"0" * 1000)
                await writer.drain()

        with pytest.raises(ConnectionError):
            await flood()
