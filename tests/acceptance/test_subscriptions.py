"""U6: users get what was sent to them, by each way to read, while every service is killed."""

import asyncio
import statistics
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import aiohttp
import pytest

from tests.fakes.gateway import RUN_GATEWAY, TICKET_KEY, base_url
from tests.fakes.messenger import RUN_SUBSCRIPTIONS, empty_subscriptions
from tests.fakes.service import RUN_CALLBACK, Service, running
from tests.fakes.subscribers import Gateways, Traffic, User, callback_server, sign_up
from tests.fakes.system import SECRETS_KEY
from tests.fakes.user_events import user_events_client
from tests.fakes.waiting import until

COMMANDS = {
    "subscriptions": RUN_SUBSCRIPTIONS,
    "gateway": RUN_GATEWAY,
    "callback": RUN_CALLBACK,
}
KINDS = ("poll", "stream", "callback", "ordered callback")
# Rounds of events before each kill, and after the last one.
ROUNDS = 2


class Processes:
    """Two processes of each service, with default settings. `urls` are those of the gateways."""

    def __init__(self, directory: Path, amqp_url: str, database_url: str, stack: ExitStack) -> None:
        self._directory = directory
        self._amqp_url = amqp_url
        self._stack = stack
        self._settings = {
            "RINGBACK_DATABASE_URL": database_url,
            "RINGBACK_SECRETS_KEY": SECRETS_KEY,
            "RINGBACK_TICKET_KEY": TICKET_KEY,
            "RINGBACK_HTTP_PORT": "0",
        }
        self.urls: list[str] = []
        self.running = {name: [self._start(name) for _ in range(2)] for name in COMMANDS}
        self.all = [service for services in self.running.values() for service in services]

    async def ready(self) -> "Processes":
        """Wait until all can work."""
        for name, services in self.running.items():
            for service in services:
                await self._ready(name, service)
        return self

    async def restart(self, name: str) -> None:
        """Kill the older process of a service with SIGKILL, and start another one."""
        self.running[name].pop(0).kill()
        if name == "gateway":
            del self.urls[0]
        service = self._start(name)
        self.running[name].append(service)
        self.all.append(service)
        await self._ready(name, service)

    async def _ready(self, name: str, service: Service) -> None:
        if name != "gateway":
            await service.ready(180)
            return
        url = await base_url(service)
        # Its /readyz also needs the scheduler, which does not run here.
        await until(lambda: service.exited() or service.logged("user events is ready"))
        self.urls.append(url)

    def _start(self, name: str) -> Service:
        return self._stack.enter_context(
            running(self._directory, self._amqp_url, self._settings, COMMANDS[name])
        )


@contextmanager
def processes(directory: Path, amqp_url: str, database_url: str) -> Iterator[Processes]:
    with ExitStack() as stack:
        yield Processes(directory, amqp_url, database_url, stack)


async def check(users: list[User], traffic: Traffic) -> None:
    """Check that each user got all events, once and in order, and that these are what was sent."""
    for user in users:
        stored = await user.everything()
        count, certain = Counter(stored), traffic.certain[user.id]
        assert max(count.values()) == 1, "an event is stored twice"
        assert certain <= count.keys(), f"lost: {certain - count.keys()}"
        assert count.keys() - certain <= traffic.possible
        await until(partial(user.has, len(stored)))
        received = [user.events[number] for number in range(1, len(stored) + 1)]
        assert received == stored, user.kind
        assert not user.faults
        assert user.kind == "callback" or list(user.events) == sorted(user.events), user.kind


def report(users: list[User], traffic: Traffic) -> str:
    """Return how late events arrived, for each way to read."""
    lines = []
    for kind in KINDS:
        late = sorted(
            at - traffic.sent_at[text]
            for user in users
            if user.kind == kind
            for text, at in user.at.items()
        )
        repeats = sum(user.repeats for user in users if user.kind == kind)
        lines.append(
            f"{kind}: {len(late)} events, {repeats} repeats, median"
            f" {statistics.median(late) * 1000:.0f} ms, p99 {late[len(late) * 99 // 100]:.2f} s,"
            f" latest {late[-1]:.2f} s"
        )
    return "\n".join(lines)


async def read_under_kills(
    processes: Processes, amqp_url: str, *, users: int, kills: int, interval: float
) -> None:
    """Let users read while they are sent events and each service is killed `kills` times."""
    await processes.ready()
    connector = aiohttp.TCPConnector(limit=0)
    by_id: dict[int, User] = {}
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        user_events_client(amqp_url) as producer,
        callback_server(by_id.__getitem__) as callbacks,
    ):
        gateways = Gateways(processes.urls, session)
        everyone = await sign_up(gateways, islice(cycle(KINDS), users))
        by_id |= {user.id: user for user in everyone}
        await asyncio.gather(*(user.start(callbacks) for user in everyone))
        # Push and poll at once: each gets every event.
        pushed = [user for user in everyone if user.kind == "callback"]
        readers = everyone + [User(gateways, user.id, user.token, "poll") for user in pushed]
        traffic, ended = Traffic(everyone, producer), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            reading = [group.create_task(u.read()) for u in readers if "callback" not in u.kind]
            sending = group.create_task(traffic.run(interval, ended))
            for name in [*COMMANDS] * kills:
                await traffic.pass_rounds(ROUNDS)
                await processes.restart(name)
            await traffic.pass_rounds(ROUNDS)
            ended.set()
            await sending
            await check(readers, traffic)
            for task in reading:
                task.cancel()
        print(f"{traffic.rounds} rounds\n{report(readers, traffic)}")  # noqa: T201 - see -s
    for service in processes.all:
        assert not service.logged("bug"), service.output


async def test_u6_users_get_each_event_in_order_while_every_service_is_killed(
    amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    """U2, U4, U6, N5: by polls, streams and callbacks, and by a callback and polls at once."""
    await empty_subscriptions(database_url)
    with processes(tmp_path, amqp_url, database_url) as started:
        await read_under_kills(started, amqp_url, users=40, kills=1, interval=0.25)


@pytest.mark.slow
async def test_u6_two_hundred_users_get_each_event_while_services_are_killed_again_and_again(
    amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    """U2, U4, U6, N5: by polls, streams and callbacks, and by a callback and polls at once."""
    await empty_subscriptions(database_url)
    with processes(tmp_path, amqp_url, database_url) as started:
        await read_under_kills(started, amqp_url, users=200, kills=3, interval=1)
