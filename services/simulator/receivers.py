"""Simulated receivers: the response of a target to each attempt, and when it comes."""

import math
from dataclasses import dataclass
from http import HTTPStatus
from random import Random
from typing import Final

from services.callback.settings import CallbackSettings
from services.simulator.scenario import Failure, Outage, Target

# The normal distribution's 99th percentile, in standard deviations.
_Z99: Final = 2.3263


@dataclass(frozen=True, slots=True)
class Reply:
    """The end of an attempt after `duration` seconds. `status`: None without a response."""

    status: int | None
    retry_after: str | None
    duration: float


class Receiver:
    """The hosts of one target. All of them behave the same."""

    def __init__(self, target: Target, settings: CallbackSettings, random: Random) -> None:
        self._target = target
        self._timeout = target.timeout or settings.timeout
        self._connect_timeout = min(settings.connect_timeout, self._timeout)
        self._random = random
        self._of_attempts = [each for each in target.failures if each.of == "attempts"]
        self._of_callbacks = [each for each in target.failures if each.of == "callbacks"]
        self._sigma = 0.0
        if target.latency_p99 is not None:
            self._sigma = math.log(target.latency_p99 / target.latency) / _Z99

    def lasting_failure(self) -> Failure | None:
        """Return the failure that a new callback gets on every attempt, or None."""
        return self._draw(self._of_callbacks)

    def reply(self, now: float, lasting: Failure | None) -> Reply:
        """Return the reply to an attempt that starts now."""
        failure: Failure | Outage | None = lasting
        for outage in self._target.outages:
            if outage.start <= now < outage.end:
                failure = outage
        failure = failure or self._draw(self._of_attempts)
        response = HTTPStatus.OK.value if failure is None else failure.response
        if response == "refused":
            return Reply(None, None, 0.0)
        if response == "unreachable":
            return Reply(None, None, self._connect_timeout)
        duration = self._latency()
        if response == "timeout" or duration >= self._timeout:
            return Reply(None, None, self._timeout)
        wait = None if failure is None else failure.retry_after
        return Reply(response, None if wait is None else str(wait), duration)

    def _draw(self, failures: list[Failure]) -> Failure | None:
        return next((each for each in failures if self._random.random() < each.probability), None)

    def _latency(self) -> float:
        median = self._target.latency
        if not self._sigma:
            return median
        return median * math.exp(self._random.gauss(0.0, self._sigma))
