"""The private broker and database: restarts, interrupted starts and stops, clear errors."""

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
from deploy.local.daemon import (
    PORTS,
    Daemon,
    FileLock,
    LocalStackError,
    free_port,
    remove,
    reserved_ports,
    wait_until,
)
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
    """Return the local addresses that listen on `port`, in the format of /proc."""
    table = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    return set(re.findall(rf": ([0-9A-F]+):{port:04X} \S+ 0A ", table))


async def test_a_killed_broker_restarts_with_its_messages_and_url(own_broker: Broker) -> None:
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


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_no_thread_of_a_suspended_process_runs_on_a_busy_machine(tmp_path: Path) -> None:
    """Its main thread has the lowest priority, so the signal reaches it late."""
    script = (
        "import os, threading, time\n"
        "def spin():\n"
        "    while True: pass\n"
        "for _ in range(4): threading.Thread(target=spin, daemon=True).start()\n"
        "os.nice(19)\n"
        "print('started', flush=True)\n"
        "time.sleep(600)\n"
    )
    daemon = Daemon(tmp_path / "busy.lock", tmp_path / "busy.log")
    daemon.start([sys.executable, "-c", script], env={})
    try:
        assert wait_until(lambda: "started" in daemon.log.read_text(), 10)
        for _ in range(20):
            daemon.suspend()
            tasks = Path(f"/proc/{daemon.pid}/task").glob("*/stat")
            assert {task.read_text().rpartition(")")[2].split()[0] for task in tasks} == {"T"}
            daemon.send_signal(signal.SIGCONT)
    finally:
        daemon.kill()


async def test_vhosts_are_isolated(broker: Broker) -> None:
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


@pytest.mark.slow
def test_an_interrupted_start_is_cleaned_up_without_killing_other_processes(
    stack_directory: Path, installation: Installation
) -> None:
    # The path has spaces and is longer than the limit of a Unix socket (108).
    directory = stack_directory / " ".join(["a long name"] * 12)
    with subprocess.Popen(["/bin/sleep", "600"]) as other_process:
        broker, database = Broker(directory / "b", installation), Database(directory / "d")
        for unfinished in (broker.directory / "data", database.directory / "data.unfinished"):
            unfinished.mkdir(parents=True)
            (unfinished / "half").write_text("written")
        for lock in (broker.directory / "node.lock", database.directory / "server.lock"):
            lock.write_text(str(other_process.pid))
        assert (broker.pid, database.pid) == (None, None)
        try:
            database.start()
            broker.start()
            broker.stop()
            database.stop()
            assert (broker.pid, database.pid) == (None, None)
            assert other_process.poll() is None
        finally:
            other_process.kill()
            remove(directory)


def test_a_broker_that_does_not_start_reports_its_log(
    stack_directory: Path, installation: Installation
) -> None:
    broker = Broker(stack_directory / "bad", installation, {"no.such.setting": "1"})
    with pytest.raises(LocalStackError, match=r"(?s)it ended.*no\.such\.setting"):
        broker.start()
    assert broker.pid is None


async def test_a_database_in_a_directory_that_its_user_cannot_enter_survives_a_crash(
    tmp_path: Path,
) -> None:
    # Only root can enter tmp_path, so for root this is like a checkout under /root.
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


def test_a_start_uses_the_servers_of_a_killed_process(stack_directory: Path) -> None:
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


@pytest.mark.slow
def test_a_start_completes_a_stop_whose_process_was_killed(
    stack_directory: Path, installation: Installation
) -> None:
    broker = Broker(stack_directory / "half-stopped", installation)
    broker.start()
    first = broker.pid
    code = f"""
from pathlib import Path
from deploy.local.broker import Broker
Broker(Path({str(broker.directory)!r})).stop()
"""
    try:
        with subprocess.Popen([sys.executable, "-c", code]) as stop:
            assert wait_until((broker.directory / "node.stopping").exists, 20)
            stop.kill()
        broker.start()
        assert broker.pid not in (first, None)
    finally:
        broker.kill()
        remove(broker.directory)


def test_a_probe_of_a_lock_does_not_prevent_its_acquisition(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    code = f"""
from pathlib import Path
from deploy.local.daemon import FileLock
print(flush=True)
while True:
    FileLock(Path({str(lock.path)!r})).holder()
"""
    lock.acquire()
    lock.release()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as probe:
        assert probe.stdout is not None
        probe.stdout.readline()
        for _ in range(200):
            assert lock.acquire() is not None
            lock.release()
        probe.kill()


def test_two_stacks_do_not_reserve_the_same_port() -> None:
    port = free_port()
    with reserved_ports() as first, reserved_ports() as second:
        assert first(port) == port
        assert second(port) != port
    with reserved_ports() as third:
        assert third(port) == port


def test_a_node_does_not_get_the_same_port_twice() -> None:
    port = free_port()
    assert free_port(set(PORTS) - {port}) == port


def test_throwaway_servers_end_with_a_killed_process() -> None:
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


def test_if_rabbitmq_cannot_be_installed_the_error_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(install, "SCRIPT_FOLDERS", ())
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LocalStackError) as raised:
        install.rabbitmq()
    for remedy in ("apt-get install rabbitmq-server", "brew install", "docker compose up"):
        assert remedy in str(raised.value)
