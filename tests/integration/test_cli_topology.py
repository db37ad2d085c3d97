"""`ringback topology` and `ringback doctor` against a real broker."""

import json

import aio_pika
import pytest

from deploy.local.broker import Broker
from tests.fakes.alarms import memory_alarm
from tests.fakes.command import ringback
from tests.fakes.sandbox import running_sandbox


async def test_check_names_everything_missing_and_declare_creates_it(amqp_url: str) -> None:
    before = await ringback("topology", "check", "--json", amqp_url=amqp_url)
    declared = await ringback("topology", "declare", amqp_url=amqp_url)
    after = await ringback("topology", "check", amqp_url=amqp_url)

    shown = json.loads((await ringback("topology", "show", "--json", amqp_url=amqp_url)).out)
    names = [each["name"] for each in shown["exchanges"] + shown["queues"]]
    assert before.code == 1
    differences = json.loads(before.out)["differences"]
    assert [difference.split("'")[1] for difference in differences] == names
    assert (declared.code, after.code) == (0, 0), declared.err + after.out
    assert "bindings are not compared" in after.out


@pytest.mark.parametrize("command", ["check", "declare"])
async def test_a_queue_with_other_arguments_is_named_with_the_difference(
    amqp_url: str, command: str
) -> None:
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(
            "callbacks.retry.5s", durable=True, arguments={"x-message-ttl": 7000}
        )

    output = await ringback("topology", command, amqp_url=amqp_url)

    assert output.code == 1
    assert "'callbacks.retry.5s' exists with other properties" in output.out + output.err


async def test_doctor_finds_no_fault_when_all_is_set_up(amqp_url: str, database_url: str) -> None:
    await ringback("topology", "declare", amqp_url=amqp_url)
    await ringback("migrate", amqp_url=amqp_url, RINGBACK_DATABASE_URL=database_url)

    async with running_sandbox() as sandbox:
        output = await ringback(
            *("doctor", "--json"),
            amqp_url=amqp_url,
            RINGBACK_DATABASE_URL=database_url,
            RINGBACK_OIDC_ISSUER=f"{sandbox.url}oidc",
        )

    assert output.code == 0, output.out
    checks = [finding["check"] for finding in output.json_lines]
    assert checks == [
        *("settings", "python", "broker", "topology", "publishing", "clock"),
        *("database", "clock"),
        *("migrations",) * 7,  # one for each service that stores data
        "sign-in",
    ]


async def test_doctor_names_each_fault_and_its_remedy(amqp_url: str) -> None:
    output = await ringback(
        "doctor",
        amqp_url=amqp_url,
        RINGBACK_DATABASE_URL="postgresql://me:canary@127.0.0.1:1/x",
        RINGBACK_OIDC_ISSUER="http://127.0.0.1:1/oidc",
    )

    assert output.code == 1
    assert "ERROR  topology: queue 'callbacks' is missing" in output.out
    assert "`ringback topology declare`" in output.out
    assert "ERROR  database: no connection to postgresql://me:" in output.out
    assert "ERROR  sign-in: http://127.0.0.1:1/oidc: the discovery document cannot" in output.out
    assert "canary" not in output.out + output.err


async def test_doctor_reports_an_alarm(own_broker: Broker) -> None:
    with memory_alarm(own_broker):
        output = await ringback("doctor", amqp_url=own_broker.url)

    assert output.code == 1
    assert "ERROR  publishing: the broker blocks publishing: an alarm is on" in output.out
