"""The test rig: private servers, a sink, sender processes, and a publisher of messages.

CPU time and memory of a sender come from /proc, so the benchmark runs on Linux only.
"""

import asyncio
import contextlib
import itertools
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Final

import trustme

from deploy.local.broker import Broker
from deploy.local.cluster import Cluster
from deploy.local.daemon import CHECKOUT, failure_lines
from deploy.local.database import Database
from deploy.local.watchdog import throwaway
from shared.amqp.codec import Properties
from shared.amqp.connection import BrokerConnection, connect
from shared.amqp.declare import declare
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, Publisher
from shared.contracts.callback import SEND_CALLBACK
from shared.process.health import Health
from shared.topology import CALLBACKS, OUTCOMES, Topology, topology
from tests.bench.sink import Group, Sink, SinkCounters, sink

PREFETCH: Final = 1000
TARGETS: Final = 20  # in each group; more than the 1,000 in flight at the default lane limit of 100
MESSAGES: Final = 1_000_000
WARM_UP: Final = 500
# With the rest of the message, 1 kB.
DATA: Final = "x" * 900
POLL: Final = 0.005
SETPRIV: Final = shutil.which("setpriv") or ""
FACTS_QUEUE: Final = "bench.facts"


def tree(pid: int) -> list[int]:
    """Return the ids of a process and of all that descend from it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in tree(int(child)))]


def cpu_of(pids: Iterable[int]) -> float:
    """Return the CPU seconds of all living threads of these processes, user and kernel mode."""
    nanoseconds = sum(
        int(thread.read_text().split()[0])
        for pid in pids
        for thread in Path(f"/proc/{pid}/task").glob("*/schedstat")
    )
    return nanoseconds / 1e9


class Contender(Enum):
    """A measured sender; its value is its command line."""

    OURS = ("-m", "services.callback")
    HAND_WRITTEN = ("-m", "tests.bench.baseline")


class StalledError(Exception):
    """A sender made no progress in time."""


@dataclass(slots=True)
class Sender:
    """A running sender: one process, or a parent with workers."""

    process: subprocess.Popen[bytes]
    log: Path

    def pids(self) -> list[int]:
        """Return the ids of the process and its children."""
        own = self.process.pid
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        return [own, *map(int, children)]

    def cpu(self) -> float:
        """Return the CPU seconds used so far by all living threads, user and kernel mode."""
        return cpu_of(self.pids())

    def resident(self) -> float:
        """Return the resident memory in MB (10^6 bytes)."""
        return (
            sum(
                int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])
                for pid in self.pids()
            )
            * 1024
            / 1e6
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes, the parent first."""
        for pid in self.pids():
            os.kill(pid, number)

    def check(self) -> None:
        """Check that the process is running.

        Raises:
            StalledError: it ended; the text contains the end of its log.
        """
        if self.process.poll() is not None:
            raise StalledError(f"a sender ended; its log says:\n{failure_lines(self.log)}")


@dataclass(slots=True)
class Site:
    """A virtual host with a running sender and the feed of its queue.

    sent: publishing time of each message, by number.
    """

    url: str
    sink: Sink
    sender: Sender
    publisher: Publisher
    numbers: Iterator[int]
    sent: dict[int, float] = field(default_factory=dict)

    @property
    def counters(self) -> SinkCounters:
        return self.sink.counters

    async def feed(self, groups: Sequence[Group], count: int) -> None:
        """Publish `count` messages with confirms, alternating between the groups' targets."""
        urls = self._targets(groups)
        for start in range(0, count, PREFETCH):
            messages = self._messages(urls, min(PREFETCH, count - start))
            await self.publisher.publish_all(messages.values())

    async def pace(
        self,
        groups: Sequence[Group],
        rate: float,
        seconds: float,
        *,
        lifetime: float | None = None,
    ) -> list[int]:
        """Publish at a steady rate and return the numbers of the messages in order.

        Each message expires `lifetime` seconds after publishing.
        """
        urls = self._targets(groups)
        begin = time.monotonic()
        published: list[int] = []
        async with asyncio.TaskGroup() as confirming:
            while (elapsed := time.monotonic() - begin) < seconds:
                messages = self._messages(urls, int(elapsed * rate) - len(published), lifetime)
                published += messages
                confirming.create_task(self.publisher.publish_all(messages.values()))
                await asyncio.sleep(0.01)
        return published

    def _targets(self, groups: Sequence[Group]) -> Iterator[str]:
        return itertools.cycle(self.sink.alternating(groups))

    def _messages(
        self, urls: Iterator[str], count: int, lifetime: float | None = None
    ) -> dict[int, OutgoingMessage]:
        expires = ""
        if lifetime is not None:
            expires_at = datetime.now(UTC) + timedelta(seconds=lifetime)
            expires = f', "expires_at": "{expires_at.isoformat()}"'
        numbers = list(itertools.islice(self.numbers, count))
        self.sent.update(dict.fromkeys(numbers, time.monotonic()))
        return {number: _send_callback(next(urls), number, expires) for number in numbers}

    def wait(self, number: int) -> float:
        """Return the seconds from publishing to the first attempt; infinite before it."""
        first = self.counters.first[number]
        return first - self.sent[number] if first else float("inf")

    async def until(self, group: Group, count: int, seconds: float) -> bool:
        """Wait until the group sent this many responses; return whether it did in time."""
        deadline = time.monotonic() + seconds
        while self.counters.responses[group] < count:
            if time.monotonic() > deadline:
                return False
            self.sender.check()
            await asyncio.sleep(POLL)
        return True

    async def warm_up(self, group: Group = Group.HEALTHY, count: int = WARM_UP) -> None:
        """Deliver some callbacks, and let their facts be published."""
        expected = self.counters.responses[group] + count
        await self.feed((group,), count)
        if not await self.until(group, expected, 30):
            raise StalledError(
                f"no deliveries in 30 s; the sender's log:\n{failure_lines(self.sender.log)}"
            )
        await asyncio.sleep(0.5)


def message_id(number: int) -> str:
    """Return the id of message `number`."""
    return f"bench-{number}"


def _send_callback(url: str, number: int, expires: str) -> OutgoingMessage:
    body = (
        f'{{"target_url": "{url}", "hmac_secret": "your-secret-key"{expires},'
        f' "payload": {{"data": "{DATA}", "id": {number}}}}}'
    )
    properties = Properties(
        content_type="application/json",
        type=SEND_CALLBACK,
        message_id=message_id(number),
        delivery_mode=PERSISTENT,
    )
    return OutgoingMessage(CALLBACKS, properties, body.encode())


@dataclass(slots=True)
class Rig:
    """The servers and the sink that all measurements share, and the directory of logs.

    authority: the PEM file of the authority that issued the sink's certificate.
    """

    broker: Broker | Cluster
    database: Database
    sink: Sink
    directory: Path
    authority: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _sites: Iterator[int] = field(default_factory=itertools.count)

    @asynccontextmanager
    async def site(
        self,
        contender: Contender,
        *,
        options: Sequence[str] = (),
        facts_bound: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Site]:
        """Start a sender on an empty queue, and warm it up. Both are deleted at the end."""
        name = f"site{next(self._sites)}"
        url = self.broker.add_vhost(name)
        health = Health()
        tables = topology().only((CALLBACKS,))
        async with connect(url, name="bench") as broker:
            await declare(broker.connection, tables)
            if facts_bound:
                await bind_facts(broker)
        publisher = Publisher(url, name="bench feed", topology=tables, health=health)
        publishing = asyncio.create_task(publisher.run())
        sender = self.start([*contender.value, *options], url, name, environment)
        try:
            await publisher.ready()
            site = Site(url, self.sink, sender, publisher, self._numbers)
            await site.warm_up()
            yield site
        finally:
            sender.signal(signal.SIGKILL)
            sender.process.wait()
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
            self.broker.delete_vhost(name)

    def start(
        self,
        argv: Sequence[str],
        url: str,
        name: str,
        environment: Mapping[str, str] | None = None,
    ) -> Sender:
        """Start a program that logs to a file of this name."""
        plain = {key: value for key, value in os.environ.items() if "RINGBACK" not in key}
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                # The kernel kills it if this process is killed.
                [SETPRIV, "--pdeathsig", "KILL", "--", sys.executable, *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=CHECKOUT,
                env={
                    **plain,
                    "RINGBACK_AMQP_URL": url,
                    "RINGBACK_METRICS_PORT": "0",
                    "RINGBACK_CALLBACK_ALLOWED_NETWORKS": "127.0.0.0/8",
                    **(environment or {}),
                },
            )
        return Sender(process, log)

    @contextmanager
    def services(
        self, names: Iterable[str], url: str, environment: Mapping[str, str]
    ) -> Iterator[dict[str, Sender]]:
        """Run one process of each service for the length of the block."""
        processes: dict[str, Sender] = {}
        try:
            for name in names:
                processes[name] = self.start(("-m", f"services.{name}"), url, name, environment)
            yield processes
        finally:
            for process in processes.values():
                process.signal(signal.SIGKILL)
                process.process.wait()


async def bind_facts(broker: BrokerConnection) -> None:
    """Declare a queue that gets all facts."""
    channel = await broker.connection.channel(publisher_confirms=False)
    await channel.queue_declare(FACTS_QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
    await channel.queue_bind(FACTS_QUEUE, OUTCOMES, "#")


@asynccontextmanager
async def running_publisher(url: str, tables: Topology) -> AsyncIterator[Publisher]:
    """Run a connected publisher for the length of the block."""
    publisher = Publisher(url, name="bench", topology=tables, health=Health())
    publishing = asyncio.create_task(publisher.run())
    try:
        await publisher.ready()
        yield publisher
    finally:
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)


@contextmanager
def rig(messages: int = MESSAGES) -> Iterator[Rig]:
    """Start the servers and the sink; stop them at the end and delete their data.

    messages: the maximum number of messages that may be published.

    Raises:
        StalledError: the system is not Linux.
    """
    if not Path("/proc/self/schedstat").exists() or not SETPRIV:
        raise StalledError(
            "the benchmark needs Linux (/proc/PID/schedstat, and setpriv of util-linux)"
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4 * PREFETCH <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4 * PREFETCH, hard))
    with throwaway("bench") as directory, contextlib.ExitStack() as stack:
        broker = Broker(directory / "broker")
        broker.start()
        stack.callback(broker.kill)
        database = Database(directory / "database")
        database.start()
        stack.callback(database.stop, immediate=True)
        authority, certificate = _certificates(directory)
        targets = dict.fromkeys(Group, TARGETS)
        receiver = stack.enter_context(sink(targets, messages=messages, certificate=certificate))
        yield Rig(broker, database, receiver, directory, authority)


def _certificates(directory: Path) -> tuple[Path, Path]:
    """Write the PEM files of a new authority, and of a key and certificate for 127.0.0.1."""
    authority, certificate = directory / "authority.pem", directory / "receiver.pem"
    issuer = trustme.CA()
    issuer.cert_pem.write_to_path(authority)
    issuer.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    return authority, certificate


def rounds(maximum: int, seconds: float, *, minimum: int = 1) -> Iterator[int]:
    """Yield round numbers: `least` to `most` rounds, none started after `seconds`."""
    begin = time.monotonic()
    for number in range(maximum):
        if number >= minimum and time.monotonic() - begin > seconds:
            return
        yield number


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which this share of the values lies; nan for none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")
