"""What is simulated: targets, their callbacks and failures, and settings."""

from __future__ import annotations

import tomllib
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from services.callback.settings import CallbackSettings
from shared.contracts.callback import Retry
from shared.contracts.context import field_errors
from shared.contracts.durations import MAX_DURATION, seconds
from shared.contracts.schedules import RetryParams

# Simulated callbacks. Each takes about 0.5 kB while it waits.
MAX_CALLBACKS: Final = 10_000_000
MAX_TARGETS: Final = 1000
# Seconds from the start after which a simulation ends in any case.
DEFAULT_END: Final = 3 * 86_400.0
WARM_UP: Final = 60.0
RECOVERY: Final = 600.0
MIN_STATUS: Final = 100
MAX_STATUS: Final = 599

_STRICT: Final = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class InvalidScenarioError(Exception):
    """The scenario is not valid; each of `faults` names a field and what is expected."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("\n".join(faults))


def _seconds(value: Any) -> Any:
    return seconds(value) if isinstance(value, str) else value


def _response(value: Any) -> Any:
    """Check a response. Pydantic's own errors of a union have its members as field names."""
    is_status = type(value) is int and MIN_STATUS <= value <= MAX_STATUS
    if not is_status and value not in ("timeout", "unreachable", "refused"):
        raise ValueError("must be timeout, unreachable, refused, or a status from 100 to 599")
    return value


# A number of seconds, or a text such as "2 hours".
Seconds = Annotated[
    float, BeforeValidator(_seconds), Field(ge=0, le=MAX_DURATION, allow_inf_nan=False)
]
Probability = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]
# `refused`: the connection is refused at once. `unreachable`: nothing answers, until the timeout of
# connecting. `timeout`: connected, but no response until the timeout of the attempt.
Response = Annotated[Literal["timeout", "unreachable", "refused"] | int, BeforeValidator(_response)]


class Failure(BaseModel):
    """A response that some attempts get, or all attempts of some callbacks."""

    model_config = _STRICT

    response: Response
    probability: Probability
    of: Literal["attempts", "callbacks"] = "attempts"
    retry_after: Annotated[int, Field(ge=0, le=86_400)] | None = None


class Outage(BaseModel):
    """A response that every attempt gets that starts between two times."""

    model_config = _STRICT

    start: Seconds = Field(alias="from")
    end: Seconds = Field(alias="to")
    response: Response = "timeout"
    retry_after: Annotated[int, Field(ge=0, le=86_400)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.end <= self.start:
            raise ValueError("`to` must be later than `from`")
        return self


def _ordered(outages: tuple[Outage, ...]) -> tuple[Outage, ...]:
    if any(later.start < earlier.end for earlier, later in pairwise(outages)):
        raise ValueError("outages must be in order and must not overlap")
    return outages


class Target(BaseModel):
    """Callbacks to one host, or to `hosts` of the same kind, and how the host responds.

    rate: callbacks a second. share: instead, the share of the scenario's rate, relative to others.
    latency: seconds of a response; with latency_p99, the median of a log-normal distribution.
    retry: that of SendCallback. scheduled: the callbacks are the scheduler's, with these retries.
    """

    model_config = _STRICT

    name: Annotated[str, Field(min_length=1, max_length=40)]
    rate: Rate | None = None
    share: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    hosts: Annotated[int, Field(ge=1, le=MAX_TARGETS)] = 1
    latency: Seconds = 0.1
    latency_p99: Seconds | None = None
    timeout: Annotated[float, Field(gt=0, le=300)] | None = None
    failures: tuple[Failure, ...] = ()
    outages: Annotated[tuple[Outage, ...], AfterValidator(_ordered)] = ()
    retry: Retry | None = None
    scheduled: RetryParams | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.rate is None) == (self.share is None):
            raise ValueError("set either rate or share")
        if self.retry is not None and self.scheduled is not None:
            raise ValueError("set either retry or scheduled")
        if self.latency_p99 is not None and not 0 < self.latency < self.latency_p99:
            raise ValueError("latency_p99 must be greater than latency, and latency above 0")
        return self


def _some(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    # Not min_length, which would also count a target with a fault as missing.
    if not targets:
        raise ValueError("must have at least one target")
    return targets


class Scenario(BaseModel):
    """A simulation: callbacks to all targets for `duration`, then until all have ended.

    rate: callbacks a second to all targets with a share. end: seconds at which the simulation ends
    in any case. callback: settings of the callback service, instead of the configured ones.
    """

    model_config = _STRICT

    duration: Annotated[Seconds, Field(gt=0)]
    targets: Annotated[tuple[Target, ...], Field(max_length=MAX_TARGETS), AfterValidator(_some)]
    rate: Rate | None = None
    end: Seconds = DEFAULT_END
    workers: Annotated[int, Field(ge=1, le=1000)] = 1
    seed: int = 1
    callback: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.rate is None and any(target.share is not None for target in self.targets):
            raise ValueError("a target has a share, so the scenario needs a rate")
        if self.end < self.duration:
            raise ValueError("end must not be earlier than duration")
        if len({target.name for target in self.targets}) < len(self.targets):
            raise ValueError("two targets have the same name")
        if self.callbacks > MAX_CALLBACKS:
            raise ValueError(
                f"{self.callbacks:,} callbacks, at most {MAX_CALLBACKS:,} are simulated;"
                " lower the rates or the duration"
            )
        return self

    def rate_of(self, target: Target) -> float:
        """Return the callbacks a second to a target."""
        if target.share is None:
            return target.rate or 0.0
        shares = sum(each.share or 0.0 for each in self.targets)
        return (self.rate or 0.0) * target.share / shares

    def callbacks_of(self, target: Target) -> int:
        """Return the number of callbacks to a target."""
        return round(self.rate_of(target) * self.duration)

    @property
    def callbacks(self) -> int:
        """Return the number of callbacks to all targets."""
        return sum(map(self.callbacks_of, self.targets))


def parse(text: str) -> Scenario:
    """Return the scenario in a TOML file.

    Raises:
        InvalidScenarioError: with every fault.
    """
    try:
        return Scenario.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InvalidScenarioError([f"not valid TOML: {error}"]) from None
    except ValidationError as error:
        raise InvalidScenarioError([str(fault) for fault in field_errors(error)]) from None


def one_target(  # noqa: PLR0913 - each is a part of the question
    rate: float,
    *,
    down: float = 0.0,
    response: Response = "timeout",
    failing: float = 0.0,
    latency: float = 0.1,
    duration: float | None = None,
    workers: int = 1,
) -> Scenario:
    """Return the scenario of one target: a minute, an outage of `down` seconds, and ten minutes.

    failing: the probability that an attempt gets 500. duration: the seconds of all callbacks.
    """
    target: dict[str, Any] = {"name": "target", "rate": rate, "latency": latency}
    if down:
        target["outages"] = ({"from": WARM_UP, "to": WARM_UP + down, "response": response},)
    if failing:
        target["failures"] = ({"response": 500, "probability": failing},)
    try:
        return Scenario.model_validate(
            {
                "duration": WARM_UP + down + RECOVERY if duration is None else duration,
                "targets": (target,),
                "workers": workers,
            }
        )
    except ValidationError as error:
        raise InvalidScenarioError([str(fault) for fault in field_errors(error)]) from None


def callback_settings(scenario: Scenario, configured: CallbackSettings) -> CallbackSettings:
    """Return the settings of the callback service: the scenario's, otherwise the configured ones.

    Raises:
        InvalidScenarioError: a setting does not exist, or its value is not valid.
    """
    try:
        return CallbackSettings.model_validate(configured.model_dump() | scenario.callback)
    except ValidationError as error:
        raise InvalidScenarioError([f"callback.{fault}" for fault in field_errors(error)]) from None
