"""A scenario of the simulator in reality: real receivers, broker and callback service."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from math import floor, log
from random import Random
from typing import Any
from uuid import uuid4

from services.sandbox.misbehaviour import response
from services.simulator.scenario import Scenario, Target
from tests.fakes.broker_client import BrokerClient, send_callback
from tests.fakes.receivers import ClientConnection, serve
from tests.fakes.waiting import until


@dataclass
class RealTarget:
    """A receiver that behaves as a target of a scenario, and what it has seen.

    failing: how many attempts of each callback fail. Their numbers have exactly the distribution of
    the target's probability, so that a count is neither lucky nor unlucky.
    """

    target: Target
    failing: Mapping[str, int]
    started: float = 0.0
    attempts: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    sent: dict[str, float] = field(default_factory=dict)
    delays: dict[str, float] = field(default_factory=dict)

    async def behave(self, connection: ClientConnection) -> None:
        """Respond to the requests of a connection."""
        now = asyncio.get_running_loop().time
        while True:
            request = await connection.request()
            callback = request.headers["webhook-id"]
            self.attempts += 1
            status = self._response(callback, now() - self.started)
            if status == "timeout":
                await connection.wait_closed()
                return
            await asyncio.sleep(self.target.latency)
            await connection.write(response(int(status)))
            if status == 200:
                self.delays.setdefault(callback, now() - self.sent[callback])

    def _response(self, callback: str, elapsed: float) -> int | str:
        for outage in self.target.outages:
            if outage.start <= elapsed < outage.end:
                return outage.response
        self.seen[callback] += 1
        failed = self.seen[callback] <= self.failing[callback]
        return self.target.failures[0].response if failed else 200

    @property
    def dead(self) -> int:
        """The callbacks whose last attempt has failed."""
        if self.target.retry is None or self.target.retry.quick_retries_count is None:
            return 0
        last = self.target.retry.quick_retries_count + 1
        return sum(
            self.seen[callback] == last < count + 1 for callback, count in self.failing.items()
        )

    @property
    def finished(self) -> bool:
        """Whether all callbacks are delivered or dead."""
        return len(self.delays) + self.dead == len(self.failing)


async def run_for_real(
    scenario: Scenario, client: BrokerClient, *, within: float
) -> Mapping[str, RealTarget]:
    """Publish the callbacks of a scenario to a running service, and wait until all have ended."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        plan: list[tuple[float, RealTarget, str, str]] = []
        real: dict[str, RealTarget] = {}
        for target in scenario.targets:
            ids = [f"{target.name}-{uuid4().hex}" for _ in range(scenario.callbacks_of(target))]
            each = real[target.name] = RealTarget(target, _failing(target, ids))
            receiver = await stack.enter_async_context(serve(each.behave))
            rate = scenario.rate_of(target)
            plan += [(n / rate, each, id_, receiver.url) for n, id_ in enumerate(ids)]
        plan.sort(key=lambda item: item[0])
        started = loop.time()
        for each in real.values():
            each.started = started
        publishing = []
        for due, each, id_, url in plan:
            if (wait := started + due - loop.time()) > 0:
                await asyncio.sleep(wait)
            each.sent[id_] = loop.time()
            retry = each.target.retry
            fields: dict[str, Any] = (
                {} if retry is None else {"retry": retry.model_dump(exclude_none=True)}
            )
            if each.target.timeout is not None:
                fields["timeout"] = each.target.timeout
            body = send_callback(url, id=id_, **fields)
            publishing.append(asyncio.create_task(client.send(body)))
        await asyncio.gather(*publishing)
        await until(lambda: all(each.finished for each in real.values()), within)
        return real


def _failing(target: Target, ids: list[str]) -> dict[str, int]:
    """Return how many attempts of each callback fail, if each fails with the probability."""
    if not target.failures:
        return dict.fromkeys(ids, 0)
    (failure,) = target.failures
    shares = [(n + 0.5) / len(ids) for n in range(len(ids))]
    Random(target.name).shuffle(shares)
    return {
        id_: floor(log(share) / log(failure.probability))
        for id_, share in zip(ids, shares, strict=True)
    }
