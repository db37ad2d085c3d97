"""`ringback run`: which parts run, several workers under one parent, and how they end."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.fakes.broker_client import broker_client, send_callback
from tests.fakes.command import ringback
from tests.fakes.sandbox import running_sandbox
from tests.fakes.service import RUN_CALLBACK, Service, running
from tests.fakes.waiting import until

TWO_WORKERS = (*RUN_CALLBACK, "--workers", "2")
RUN_MODULE = ("-m", "services.callback", "--metrics-port", "0")


def children(service: Service) -> list[int]:
    """Return the PIDs of its workers."""
    pid = service.process.pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_workers_share_the_queue_and_their_metrics_are_summed(
    amqp_url: str, tmp_path: Path
) -> None:
    with running(tmp_path, amqp_url, arguments=TWO_WORKERS) as service:
        await service.ready()
        assert set(await service.parts()) == {"worker 1", "worker 2"}
        async with broker_client(amqp_url) as client, running_sandbox() as receiver:
            url = await receiver.mailbox()
            await client.send_all(send_callback(url) for _ in range(60))
            await receiver.webhooks(url, count=60)
            assert await service.metric_reaches(60, "callback_total", status="success") == 60
            consumers = await client.channel.declare_queue("callbacks", passive=True)
            assert consumers.declaration_result.consumer_count == 2

        service.signal(signal.SIGTERM)
        assert await service.exit_code() == 0


async def test_a_killed_worker_is_restarted_and_its_counts_stay(
    amqp_url: str, tmp_path: Path
) -> None:
    with running(tmp_path, amqp_url, arguments=TWO_WORKERS) as service:
        await service.ready()
        async with broker_client(amqp_url) as client, running_sandbox() as receiver:
            url = await receiver.mailbox()
            await client.send_all(send_callback(url) for _ in range(20))
            await receiver.webhooks(url, count=20)
            assert await service.metric_reaches(20, "callback_total", status="success") == 20
            before = children(service)
            os.kill(before[0], signal.SIGKILL)
            await until(lambda: service.logged("killed by SIGKILL"))
            await service.ready()

            assert len(set(children(service)) - set(before)) == 1
            assert await service.metric("ringback_worker_restarts_total") == 1
            # At least 20: messages that were not acknowledged are delivered and counted again.
            assert await service.metric("callback_total", status="success") >= 20


async def test_a_failed_worker_stops_all_others_with_its_exit_code(
    amqp_url: str, tmp_path: Path
) -> None:
    with running(tmp_path, amqp_url, arguments=TWO_WORKERS) as service:
        await service.ready()
        async with broker_client(amqp_url) as client:
            # A worker that is started now finds a queue with other arguments.
            await client.channel.queue_delete("callbacks.dead")
            await client.channel.declare_queue("callbacks.dead", durable=True)
            os.kill(children(service)[0], signal.SIGKILL)

            assert await service.exit_code() == 1

        assert service.logged("callbacks.dead", level="CRITICAL")


async def test_workers_stop_after_a_kill_of_their_parent(amqp_url: str, tmp_path: Path) -> None:
    with running(tmp_path, amqp_url, arguments=TWO_WORKERS) as service:
        await service.ready()
        orphans = children(service)

        service.kill()

        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans))
        assert len(service.logged("parent process ended")) == 2


@pytest.mark.parametrize("argument", ["--consumer", "--no-metrics"])
async def test_the_consumer_alone_serves_no_metrics(
    amqp_url: str, tmp_path: Path, argument: str
) -> None:
    with running(tmp_path, amqp_url, arguments=(*RUN_MODULE, argument)) as service:
        await until(lambda: service.logged("consumer is ready"))
        assert not service.logged("metrics on port")
        service.signal(signal.SIGINT)
        assert await service.exit_code() == 0


async def test_metrics_alone_do_not_need_a_broker(tmp_path: Path) -> None:
    with running(tmp_path, "amqp://127.0.0.1:1/", arguments=(*RUN_MODULE, "--metrics")) as service:
        await service.ready()
        assert await service.parts() == {}


async def test_the_sandbox_runs_as_a_service(tmp_path: Path) -> None:
    arguments = ("-m", "services.sandbox", "--metrics-port", "0")
    settings = {"RINGBACK_SANDBOX_PORT": "0", "RINGBACK_SANDBOX_SMTP_PORT": "0"}
    with running(tmp_path, "amqp://127.0.0.1:1/", settings, arguments) as service:
        await service.ready()
        assert service.logged("sandbox started at http://127.0.0.1:")
        service.signal(signal.SIGTERM)
        assert await service.exit_code() == 0


async def test_all_faults_of_the_configuration_are_reported_before_anything_connects() -> None:
    connections = 0

    def on_connection(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    async with await asyncio.start_server(on_connection, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        output = await ringback(
            *("run", "callback"),
            amqp_url=f"amqp://127.0.0.1:{port}",
            RINGBACK_LOG_LEVEL="LOUD",
            RINGBACK_CALLBACK_PREFETCH="none",
            RINGBACK_CALLBACK_SECRETS='{"a": ["canary", 7]}',
        )

    assert (output.code, connections) == (2, 0)
    for name in ("LOG_LEVEL", "CALLBACK_PREFETCH", "CALLBACK_SECRETS"):
        assert f"RINGBACK_{name}" in output.err
    assert "canary" not in output.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("callback", "--no-consumer", "--no-metrics"),
        ("callback", "--metrics", "--workers", "2"),
        ("sandbox", "--workers", "2"),
        ("callback", "--workers", "0"),
        ("mailer",),
    ],
)
async def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    output = await ringback("run", *arguments, amqp_url="amqp://127.0.0.1:1/")

    assert output.code == 2
    assert "Error:" in output.err
