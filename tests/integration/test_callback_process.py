"""H4 to H7, row 32: metrics, logs, parts, settings and signals of a real process."""

import asyncio
import json
import re
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from services.sandbox.misbehaviour import hang, response
from tests.fakes.broker_client import CALLBACKS, DEAD, BrokerClient, broker_client, send_callback
from tests.fakes.declaring import declare_queues
from tests.fakes.receivers import ClientConnection, respond, serve
from tests.fakes.sandbox import running_sandbox
from tests.fakes.service import RUN_CALLBACK, Service, running
from tests.fakes.waiting import until

RUN_MODULE = ("-m", "services.callback", "--metrics-port", "0")


async def test_h4_the_metrics_have_the_documented_names_and_values(
    amqp_url: str, tmp_path: Path
) -> None:
    settings = {"RINGBACK_CALLBACK_MAX_TARGETS": "3"}
    async with AsyncExitStack() as stack:
        service = stack.enter_context(running(tmp_path, amqp_url, settings))
        await service.ready()
        publisher = await stack.enter_async_context(broker_client(amqp_url))
        targets = [await stack.enter_async_context(serve(respond())) for _ in range(5)]
        failing = await stack.enter_async_context(serve(respond(500)))
        for target in targets:
            delivered = await publisher.send(send_callback(target.url + "/a-token-in-the-path"))
            await publisher.fact(delivered, "callback.delivered")
        await publisher.send(send_callback(failing.url, retry={"delays": [1]}))
        invalid_secret = await publisher.send(send_callback(targets[0].url, hmac_secret="whsec_*"))
        unknown = send_callback(targets[0].url, secret_ref="nobody")
        del unknown["hmac_secret"]
        for callback in (invalid_secret, await publisher.send(unknown)):
            await publisher.fact(callback, "callback.dead")
        await until(lambda: len([f for f in publisher.facts if f["type"] == "callback.dead"]) == 3)

        assert await service.metric("callback_total", status="success") == 5
        # two attempts of the failing callback, and the two that cannot be signed
        assert await service.metric("callback_total", status="error") == 4
        assert await service.metric("hmac_errors_total") == 2
        assert await service.metric("amqp_reconnects_total") == 0
        count = "callback_duration_seconds_count"
        assert await service.metric(count) == 7
        assert await service.metric(count, target_url="other") == 4, (
            "above the limit of three targets"
        )
        text = (await service.get("/metrics"))[1]
        labels = set(re.findall(r'target_url="([^"]*)"', text))
        assert labels == {t.url.removesuffix("/hook") for t in targets[:3]} | {"other"}
        names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        promised = ("callback_", "hmac_errors", "amqp_reconnects", "ringback_")
        assert [name for name in names if not name.startswith(promised)] == []


async def test_finding_b20_a_stalled_reader_of_the_log_does_not_stop_deliveries(
    amqp_url: str, tmp_path: Path
) -> None:
    stalled = "import os; os.dup2(os.pipe()[1], 2); from services.__main__ import main; "
    arguments = ("-c", f"{stalled}main({list(RUN_CALLBACK[2:])!r})")
    await declare_queues(amqp_url, CALLBACKS)
    async with serve(respond()) as receiver, broker_client(amqp_url) as publisher:
        with running(tmp_path, amqp_url, arguments=arguments) as service:
            # The pipe takes 64 kB, and each callback logs about 300 bytes.
            await publisher.send_all(send_callback(receiver.url) for _ in range(600))
            await until(lambda: len(receiver.requests) == 600)
            service.signal(signal.SIGTERM)
            assert await service.exit_code() == 0


async def test_h5_logs_are_json_one_line_for_each_attempt(amqp_url: str, tmp_path: Path) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with running(tmp_path, amqp_url) as service:
        await service.ready()
        async with broker_client(amqp_url) as publisher, running_sandbox() as receiver:
            url = await receiver.mailbox(behaviour={"kind": "fail", "status": 500}, times=1)
            callback = await publisher.send(
                send_callback(url, client_id="shop", retry={"delays": [1]}),
                headers={"traceparent": trace},
            )
            await publisher.fact(callback, "callback.delivered")
        lines = [line for line in service.lines if line.get("callback_id") == callback]
        assert [(line["message"], line["attempt"]) for line in lines] == [
            ("callback attempt failed", 1),
            ("callback delivered", 2),
        ]
        for line in service.lines:
            timestamp = datetime.fromisoformat(line["timestamp"])
            assert timestamp.tzinfo == UTC
            assert line["timestamp"].endswith("Z")
            assert (line["service"], line["level"]) in {
                ("callback", level) for level in ("INFO", "WARNING", "ERROR")
            }
        assert lines[0]["target_url"] == url.split("/hooks")[0]
        assert lines[0]["client_id"] == "shop"
        assert lines[0]["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"


CANARIES = {
    "secret": "canary-secret",
    "old": "canary-old-secret",
    "configured": "canary-configured",
    "payload": "canary-payload",
    "header": "canary-header",
    "path": "canary-path",
    "query": "canary-query",
    "body": "canary-response",
}


async def test_h5_no_log_metric_or_fact_contains_a_secret(amqp_url: str, tmp_path: Path) -> None:
    settings = {
        "RINGBACK_LOG_LEVEL": "DEBUG",
        "RINGBACK_CALLBACK_SECRETS": json.dumps({"billing": CANARIES["configured"]}),
    }

    async def refuse(connection: ClientConnection) -> None:
        while True:
            await connection.request()
            await connection.write(response(500, body=CANARIES["body"].encode()))

    async with AsyncExitStack() as stack:
        service = stack.enter_context(running(tmp_path, amqp_url, settings))
        await service.ready()
        publisher = await stack.enter_async_context(broker_client(amqp_url))
        healthy = await stack.enter_async_context(serve(respond(body=CANARIES["body"].encode())))
        failing = await stack.enter_async_context(serve(refuse))
        garbled = await stack.enter_async_context(serve(_garbled))
        common: dict[str, Any] = {
            "hmac_secret": [CANARIES["secret"], CANARIES["old"]],
            "payload": {"text": CANARIES["payload"]},
            "headers": {"Authorization": CANARIES["header"]},
            "retry": {"delays": [1]},
        }
        path = f"/{CANARIES['path']}?token={CANARIES['query']}"
        by_name = send_callback(healthy.url + path, **common, secret_ref="billing")
        del by_name["hmac_secret"]
        wrong = send_callback("http://10.0.0.1" + path, **common)
        ids = await publisher.send_all(
            [
                send_callback(healthy.url + path, **common),
                by_name,
                send_callback(failing.url + path, **common),
                send_callback(garbled.url + path, **common),
                send_callback("http://127.0.0.1:9" + path, **common),
                send_callback("http://no-such-host.invalid" + path, **common, timeout=1),
                send_callback("http://[" + path, **common),
                wrong,
                wrong | {"timeout": "canary-secret"},
                send_callback(
                    healthy.url, **common | {"hmac_secret": "whsec_!" + CANARIES["secret"]}
                ),
            ]
        )
        done = ("callback.delivered", "callback.dead")
        await until(
            lambda: {f["callback_id"] for f in publisher.facts if f["type"] in done} >= set(ids[:8])
        )
        await until(lambda: len([f for f in publisher.facts if f["type"] in done]) == len(ids))
        metrics = (await service.get("/metrics"))[1]
        facts = json.dumps(publisher.facts)
        reasons = str([dead_letter.headers for dead_letter in await publisher.read_dead_letters()])
        service.signal(signal.SIGTERM)
        assert await service.exit_code() == 0
        for name, canary in CANARIES.items():
            for place, text in {
                "log": service.output,
                "metrics": metrics,
                "facts": facts,
                "headers of dead letters": reasons,
            }.items():
                assert canary not in text, f"the {name} is in the {place}"


async def _garbled(connection: ClientConnection) -> None:
    """Respond with the body as a header; on later connections, echo the request."""
    request = await connection.request()
    if connection.number == 1:
        await connection.write(f"HTTP/1.1 200 OK\r\n{CANARIES['body']}\r\n\r\n".encode())
    else:
        await connection.write(
            f"POST {request.path}\r\n{request.headers}\r\n\r\n".encode() + request.body
        )


async def test_h5_logs_can_be_text(amqp_url: str, tmp_path: Path) -> None:
    with running(
        tmp_path, amqp_url, {"RINGBACK_LOG_FORMAT": "text"}, (*RUN_CALLBACK, "--no-metrics")
    ) as service:
        await until(lambda: "consumer is ready" in service.output)
        assert not service.output.startswith("{")


@pytest.mark.parametrize("command", [RUN_CALLBACK, RUN_MODULE], ids=["ringback run", "python -m"])
async def test_h6_only_the_metrics_part_can_run(
    amqp_url: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    with running(tmp_path, amqp_url, arguments=(*command, "--metrics")) as service:
        assert (await service.get("/metrics"))[0] == 200
        assert (await service.get("/healthz"))[0] == 200
        connection = await aio_pika.connect(amqp_url)
        channel = await connection.channel()
        with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
            await channel.declare_queue(CALLBACKS, passive=True)
        await connection.close()
        service.signal(signal.SIGTERM)
        assert await service.exit_code() == 0


@pytest.mark.parametrize("command", [RUN_CALLBACK, RUN_MODULE], ids=["ringback run", "python -m"])
async def test_h6_only_the_consumer_part_can_run(
    amqp_url: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    with running(tmp_path, amqp_url, arguments=(*command, "--consumer")) as service:
        await until(lambda: service.logged("consumer is ready"))
        async with broker_client(amqp_url) as publisher, running_sandbox() as receiver:
            url = await receiver.mailbox()
            await publisher.send(send_callback(url))
            await receiver.webhooks(url)
        assert not service.logged("metrics on port")
        service.signal(signal.SIGINT)
        assert await service.exit_code() == 0


async def test_h6_both_parts_run_with_two_workers(amqp_url: str, tmp_path: Path) -> None:
    arguments = (*RUN_MODULE, "--consumer", "--metrics", "--workers", "2")
    with running(tmp_path, amqp_url, arguments=arguments) as service:
        await service.ready()
        async with broker_client(amqp_url) as publisher, running_sandbox() as receiver:
            url = await receiver.mailbox()
            await publisher.send_all(send_callback(url) for _ in range(100))
            await receiver.webhooks(url, 100)

            assert await service.metric_reaches(100, "callback_total", status="success") == 100
        service.signal(signal.SIGTERM)
        assert await service.exit_code() == 0
        assert len(service.logged("stopped")) == 3, "two workers and their parent"


async def test_h7_all_invalid_settings_are_named_and_the_exit_code_is_2(tmp_path: Path) -> None:
    (tmp_path / "ringback.toml").write_text('[callback]\nprefech = 5\nprefetch = "many"\n')
    settings = {
        "RINGBACK_LOG_LEVEL": "LOUD",
        "RINGBACK_CALLBACK_TIMEOUT": "-1",
        "RINGBACK_CALLBACK_ALLOWED_NETWORKS": "10.0.0.0/8,everything",
        "RINGBACK_CALLBACK_SECRETS": '{"billing": 5, "canary": "canary-secret"}',
    }
    with running(tmp_path, "postgresql://wrong/", settings) as service:
        assert await service.exit_code() == 2
        for name in (
            "RINGBACK_AMQP_URL",
            "RINGBACK_LOG_LEVEL",
            "RINGBACK_CALLBACK_TIMEOUT",
            "RINGBACK_CALLBACK_ALLOWED_NETWORKS",
            "RINGBACK_CALLBACK_SECRETS",
            "prefech",
            "prefetch",
        ):
            assert name in service.output, name
        assert "everything" in service.output
        assert "Traceback" not in service.output
        assert "canary-secret" not in service.output


async def test_h7_settings_come_from_the_file_and_the_environment(
    amqp_url: str, tmp_path: Path
) -> None:
    (tmp_path / "ringback.toml").write_text(
        'queue_type = "classic"\n[callback]\ngive_up_after = 1.3\ntimeout = 300\n'
        'secrets = { billing = "from-the-file" }\n'
    )
    settings = {"RINGBACK_CALLBACK_TIMEOUT": "0.4", "RINGBACK_CALLBACK_MAX_MESSAGE_BYTES": "2000"}
    with running(tmp_path, amqp_url, settings) as service:
        await service.ready()
        async with broker_client(amqp_url) as publisher, serve(hang) as target:
            # the timeout is from the environment; give_up_after, from the file, is before the retry
            callback = await publisher.send(send_callback(target.url))
            dead_letter = await publisher.dead_letter(callback)
            assert "within 0.4 s" in str(dead_letter.headers["x-ringback-reason"])
            assert "1 attempt in 1 s" in str(dead_letter.headers["x-ringback-reason"])
            large = await publisher.send(send_callback(target.url, payload="x" * 2000))
            dead_letter = await publisher.dead_letter(large)
            assert "2000" in str(dead_letter.headers["x-ringback-reason"])


async def test_classic_queues_work(amqp_url: str, tmp_path: Path) -> None:
    with running(tmp_path, amqp_url, {"RINGBACK_QUEUE_TYPE": "classic"}) as service:
        await service.ready()
        async with broker_client(amqp_url) as publisher, running_sandbox() as receiver:
            url = await receiver.mailbox(behaviour={"kind": "fail", "status": 500}, times=1)
            callback = await publisher.send(send_callback(url, retry={"delays": [1]}))
            await publisher.fact(callback, "callback.delivered")
            await publisher.send(b"not JSON", message_id="invalid")
            assert (await publisher.dead_letter("invalid")).message_id == "invalid"
            arguments: dict[str, Any] = {
                "x-queue-type": "classic",
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": DEAD,
            }
            await publisher.channel.declare_queue(CALLBACKS, durable=True, arguments=arguments)


async def test_a_metrics_port_in_use_is_reported_and_the_exit_code_is_1(
    amqp_url: str, tmp_path: Path
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        arguments = ("-m", "services", "run", "callback", "--metrics-port", str(port))
        with running(tmp_path, amqp_url, arguments=arguments) as service:
            assert await service.exit_code() == 1
            assert service.logged("cannot start")
            assert str(port) in service.logged("cannot start")[0]["message"]


async def test_readyz_fails_without_a_broker_and_names_what_is_missing(tmp_path: Path) -> None:
    with running(tmp_path, "amqp://guest:canary-password@127.0.0.1:1/") as service:
        await until(lambda: service.logged("publisher is not ready"))
        status, text = await service.get("/readyz")
        assert status == 503
        parts = json.loads(text)["parts"]
        assert "127.0.0.1:1" in parts["publisher"]
        assert "canary-password" not in text + service.output
        assert (await service.get("/healthz"))[0] == 200
        service.signal(signal.SIGTERM)
        assert await service.exit_code() == 0


@asynccontextmanager
async def client_and_service(
    amqp_url: str, directory: Path, settings: Mapping[str, str]
) -> AsyncIterator[tuple[BrokerClient, Service]]:
    with running(directory, amqp_url, settings) as service:
        await service.ready()
        async with broker_client(amqp_url) as publisher:
            yield publisher, service


async def in_flight(publisher: BrokerClient, target_url: str, count: int) -> list[str]:
    ids = await publisher.send_all(send_callback(target_url) for _ in range(count))
    return list(ids)


async def test_row_32_sigterm_waits_for_attempts_in_flight(amqp_url: str, tmp_path: Path) -> None:
    finish = asyncio.Event()

    async def respond_late(connection: ClientConnection) -> None:
        while True:
            await connection.request()
            await finish.wait()
            await connection.write(response())

    async with client_and_service(amqp_url, tmp_path, {}) as (publisher, service):
        async with serve(respond_late) as target:
            # a new lane starts with a limit of 4 requests; the others wait in its queue
            ids = await in_flight(publisher, target.url, 4)
            await until(lambda: len(target.requests) == 4)
            service.signal(signal.SIGTERM)
            await until(lambda: service.logged("stopping on SIGTERM"))
            assert (await service.get("/readyz"))[0] == 503
            # this process must not consume new messages
            await publisher.send(send_callback(target.url))
            finish.set()
            assert await service.exit_code() == 0
            assert len(target.requests) == 4
        await until(lambda: {f["callback_id"] for f in publisher.facts} == set(ids))
        await until(lambda: ready_messages(publisher, 1))


async def test_row_32_unfinished_messages_are_requeued_without_counting_an_attempt(
    amqp_url: str, tmp_path: Path
) -> None:
    settings = {"RINGBACK_SHUTDOWN_TIMEOUT": "3"}
    async with client_and_service(amqp_url, tmp_path, settings) as (publisher, service):
        async with serve(hang) as target:
            await in_flight(publisher, target.url, 10)
            await until(lambda: len(target.requests) == 4)
            service.signal(signal.SIGTERM)
            assert await service.exit_code() == 0
        await until(lambda: ready_messages(publisher, 10))
        assert publisher.facts == []
        queue = await publisher.channel.get_queue(CALLBACKS)
        message = await queue.get(no_ack=True)
        assert message is not None
        assert "x-ringback-attempt" not in message.headers


async def test_row_32_a_second_signal_stops_at_once(amqp_url: str, tmp_path: Path) -> None:
    async with client_and_service(amqp_url, tmp_path, {}) as (publisher, service):
        async with serve(hang) as target:
            await in_flight(publisher, target.url, 1)
            await until(lambda: target.requests)
            service.signal(signal.SIGTERM)
            await until(lambda: service.logged("stopping on SIGTERM"))
            service.signal(signal.SIGTERM)
            assert await service.exit_code(within=5) == 128 + signal.SIGTERM
        await until(lambda: ready_messages(publisher, 1))


async def ready_messages(publisher: BrokerClient, count: int) -> bool:
    return await publisher.length(CALLBACKS) == count
