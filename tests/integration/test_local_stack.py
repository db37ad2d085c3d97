"""The private broker and database: restart, ruins of an earlier run, killed users, clear errors."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import aio_pika
import asyncpg
import pytest

from deploy.local import install, stack
from deploy.local.broker import Broker
from deploy.local.daemon import LocalStackError, remove, wait_until
from deploy.local.database import Database
from deploy.local.install import Installation
from deploy.local.stack import Stack


async def publish(url: str, queue: str) -> None:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})
        message = aio_pika.Message(b"kept", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, queue)


async def get(url: str, queue: str) -> bytes:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        message = await (await channel.get_queue(queue)).get(no_ack=True)
        assert message is not None
        return message.body


async def query(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def listening_on(port: int) -> set[str]:
    """The local addresses, as /proc shows them, on which somebody listens at `port`."""
    table = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    return set(re.findall(rf": ([0-9A-F]+):{port:04X} \S+ 0A ", table))


async def test_a_killed_broker_comes_back_with_its_messages_at_its_url(own_broker: Broker) -> None:
    url = own_broker.url
    await publish(url, "kept")
    own_broker.sync()
    own_broker.kill()
    assert own_broker.pid is None
    own_broker.start()
    assert own_broker.url == url
    assert await get(url, "kept") == b"kept"


async def test_a_suspended_broker_is_silent_until_it_is_resumed(own_broker: Broker) -> None:
    own_broker.suspend()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(publish(own_broker.url, "later"), 1)
    own_broker.resume()
    await asyncio.wait_for(publish(own_broker.url, "later"), 10)


async def test_each_vhost_is_a_world_of_its_own(broker: Broker) -> None:
    first, second = broker.add_vhost("a/b c"), broker.add_vhost("other")
    await publish(first, "here")
    with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
        await get(second, "here")
    broker.delete_vhost("a/b c")
    broker.delete_vhost("other")
    assert broker.ctl("list_vhosts", "name").count("other") == 0


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
def test_all_servers_listen_on_loopback_only(broker: Broker, database: Database) -> None:
    ports = re.findall(r"\d+", (broker.directory / "ports.json").read_text())
    assert len(ports) == 4
    for port in [*ports, (database.directory / "port").read_text()]:
        addresses = listening_on(int(port))
        assert addresses
        assert addresses <= {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1, ::1


def test_ruins_of_an_earlier_start_are_cleared_and_strangers_left_alone(
    stack_directory: Path, installation: Installation
) -> None:
    # A path longer than a Unix socket's may be (108), with blanks in it.
    directory = stack_directory / " ".join(["a long name"] * 12)
    with subprocess.Popen(["/bin/sleep", "600"]) as stranger:
        broker, database = Broker(directory / "b", installation), Database(directory / "d")
        for made in (broker.directory / "data", database.directory / "data.unfinished"):
            made.mkdir(parents=True)
            (made / "half").write_text("written")
        for lock in (broker.directory / "node.lock", database.directory / "server.lock"):
            lock.write_text(str(stranger.pid))
        assert (broker.pid, database.pid) == (None, None)
        try:
            database.start()
            broker.start()
            broker.stop()
            database.stop()
            assert (broker.pid, database.pid) == (None, None)
            assert stranger.poll() is None
        finally:
            stranger.kill()
            remove(directory)


def test_a_broker_that_does_not_start_says_why(
    stack_directory: Path, installation: Installation
) -> None:
    broker = Broker(stack_directory / "bad", installation, {"no.such.setting": "1"})
    with pytest.raises(LocalStackError, match=r"(?s)ended at once.*no\.such\.setting"):
        broker.start()
    assert broker.pid is None


async def test_a_database_survives_a_crash_and_a_directory_its_user_cannot_enter(
    tmp_path: Path,
) -> None:
    # pytest makes tmp_path for its user alone, so as root this is like a checkout under /root.
    database = Database(tmp_path / "database")
    try:
        database.start()
        url = database.url
        await query(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        database.stop(immediate=True)
        assert database.pid is None
        database.start()
        assert database.url == url
        assert await query(url, "SELECT answer FROM kept") == 42
        assert await query(url, "SHOW fsync") == "on"
    finally:
        remove(tmp_path)
    assert database.pid is None


def test_configured_servers_are_used_as_they_are(tmp_path: Path) -> None:
    given = {"RINGBACK_AMQP_URL": "amqp://there/", "RINGBACK_DATABASE_URL": "postgresql://there/x"}
    with stack.start(tmp_path, given) as used:
        assert used == Stack("amqp://there/", "postgresql://there/x")
        assert used.environment == given
        with (
            pytest.raises(LocalStackError, match=f"as process {os.getpid()}"),
            stack.start(tmp_path, given),
        ):
            pass


def test_the_next_start_takes_over_what_a_killed_one_left_running(stack_directory: Path) -> None:
    directory = stack_directory / "taken-over"
    code = f"""
import signal
from pathlib import Path
from deploy.local.stack import start
with start(Path({str(directory)!r}), {{"RINGBACK_AMQP_URL": "amqp://there/"}}) as stack:
    print(stack.database.pid, flush=True)
    signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        server = int(first.stdout.readline())
        first.send_signal(signal.SIGKILL)
    with stack.start(directory, {"RINGBACK_AMQP_URL": "amqp://there/"}) as second:
        assert second.database is not None
        assert second.database.pid == server
    assert second.database.pid is None


def test_servers_end_with_a_session_that_is_killed() -> None:
    code = """
import signal
from deploy.local.database import Database
from deploy.local.watchdog import throwaway
with throwaway("killed") as directory:
    database = Database(directory / "database", durable=False)
    database.start()
    print(directory, flush=True)
    signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as session:
        assert session.stdout is not None
        directory = Path(session.stdout.readline().decode().strip())
        database = Database(directory / "database")
        assert database.pid
        session.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not directory.exists(), 20)
    assert database.pid is None


def test_where_rabbitmq_cannot_be_installed_the_error_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(install, "SCRIPT_FOLDERS", ())
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LocalStackError) as raised:
        install.rabbitmq()
    for remedy in ("apt-get install rabbitmq-server", "brew install", "docker compose up"):
        assert remedy in str(raised.value)
