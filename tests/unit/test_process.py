"""The lifecycle of a process: readiness, draining in the grace period, exit codes. Row 32."""

import asyncio
import gc
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module

import pytest
from prometheus_client import REGISTRY, Gauge

from shared.clock import SystemClock, rfc3339
from shared.errors import RingbackError
from shared.process.health import Health
from shared.process.run import MAX_FILES, Parts, Process, drain_time, raise_file_limit, serve
from shared.registry import SERVICES
from shared.settings import Settings

QUIET = Parts(metrics=False)


class FaultsError(RingbackError):
    """An error with several faults."""

    faults = ("queue a differs", "queue b differs")


def new_process(grace: float = 5.0) -> Process:
    return Process("callback", Settings(shutdown_timeout=grace), Health())


async def run_forever() -> None:
    await asyncio.Event().wait()


@pytest.fixture
def _restored_process() -> Iterator[None]:
    """Restore what `serve` changes in its process: logging, signals, garbage collection."""
    root, threshold = logging.getLogger(), gc.get_threshold()
    handlers, level = root.handlers[:], root.level
    switches = ("logThreads", "logProcesses", "logMultiprocessing", "_srcfile")
    before = {name: getattr(logging, name) for name in switches}
    root.handlers = []
    yield
    root.handlers = handlers
    root.setLevel(level)
    for name, value in before.items():
        setattr(logging, name, value)
    gc.unfreeze()
    gc.set_threshold(*threshold)


def test_a_process_is_ready_when_every_part_is(caplog: pytest.LogCaptureFixture) -> None:
    changes = []
    with caplog.at_level(logging.INFO):
        health = Health()
        health.on_change = lambda: changes.append(health.fault)
        health.expect("publisher")
        health.expect("consumer")
        assert not health.ready
        health.up("publisher")
        assert not health.ready
        health.up("consumer")
        assert health.ready
        health.up("consumer")
        health.down("consumer", "the broker is gone")
        health.down("consumer", "the broker is gone")
    assert health.fault == "consumer: the broker is gone"
    assert health.report() == {
        "status": "not ready",
        "parts": {"publisher": "ok", "consumer": "the broker is gone"},
    }
    assert changes[:4] == ["starting", "starting", "starting", None]
    assert [record.getMessage() for record in caplog.records] == [  # each change once
        "publisher is ready",
        "consumer is ready",
        "consumer is not ready: the broker is gone",
    ]


def test_n14_readiness_is_a_metric_for_alerts() -> None:
    def ready() -> float | None:
        return REGISTRY.get_sample_value("ringback_part_ready", {"part": "a part of a test"})

    health = Health()
    health.expect("a part of a test")
    assert ready() == 0
    health.up("a part of a test")
    assert ready() == 1
    health.down("a part of a test", "the broker is gone")
    assert ready() == 0


def test_a_draining_process_is_never_ready_again() -> None:
    health = Health()
    health.expect("consumer")
    health.drain()
    health.up("consumer")
    assert not health.ready
    assert health.report()["status"] == "draining"


# Row 32
async def test_row_32_stopping_drains_and_then_cancels_the_tasks() -> None:
    process = new_process(grace=5.0)
    seen: list[object] = []

    async def worker() -> None:
        try:
            await run_forever()
        finally:
            seen.append("worker ended")

    async def drain(seconds: float) -> None:
        seen.extend([process.health.ready, seconds])

    process.run(worker())
    process.on_drain(drain)
    await asyncio.sleep(0)
    assert not process.stopping.is_set()
    assert await process.stop() == 0
    assert seen == [False, pytest.approx(drain_time(5.0), abs=0.1), "worker ended"]


# Row 32
async def test_row_32_a_hanging_drain_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    process = new_process(grace=0.01)

    async def hang(_: float) -> None:
        await run_forever()

    process.run(run_forever())
    process.on_drain(hang)
    async with asyncio.timeout(5):
        assert await process.stop() == 0
    assert "not drained within 0.01 s" in caplog.text


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (FaultsError("2 queues differ"), ["queue a differs", "queue b differs"]),
        (RingbackError("no such vhost"), ["no such vhost"]),
        (KeyError("bug"), ["a part of the service ended unexpectedly"]),
        (None, ["a part of the service ended unexpectedly"]),
    ],
    ids=["faults", "error", "bug", "end"],
)
async def test_a_part_that_ends_by_itself_stops_the_process_and_is_logged(
    caplog: pytest.LogCaptureFixture, error: Exception | None, lines: list[str]
) -> None:
    process, drained = new_process(), []

    async def part() -> None:
        if error is not None:
            raise error

    async def drain(seconds: float) -> None:
        drained.append(seconds)

    process.run(run_forever())
    process.run(part())
    process.on_drain(drain)
    async with asyncio.timeout(5):
        await process.stopping.wait()
    assert await process.stop() == 1
    assert [record.getMessage() for record in caplog.records] == lines
    assert ("KeyError: 'bug'" in caplog.text) == isinstance(error, KeyError)
    assert drained == []  # messages in flight return to their queue


# Row 32, H6
@pytest.mark.usefixtures("_restored_process")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_row_32_a_signal_drains_a_service_and_it_exits_with_0(
    capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    seen = []

    async def start(process: Process) -> None:
        async def drain(_: float) -> None:
            seen.append("drained")

        async def send_signal() -> None:
            os.kill(os.getpid(), number)
            await run_forever()

        process.stack.callback(seen.append, "closed")
        process.on_drain(drain)
        process.run(send_signal())

    assert serve("callback", start, Settings(), QUIET) == 0
    assert seen == ["drained", "closed"]
    assert f'"message":"stopping on {number.name}"' in capfd.readouterr().err


@pytest.mark.usefixtures("_restored_process")
@pytest.mark.parametrize(
    ("failure", "output"),
    [(OSError("address already in use"), "cannot start: address already in use"), (None, "ended")],
)
def test_a_service_that_fails_exits_with_1(
    capfd: pytest.CaptureFixture[str], failure: OSError | None, output: str
) -> None:
    async def start(process: Process) -> None:
        if failure is not None:
            raise failure
        process.run(asyncio.sleep(0))

    assert serve("callback", start, Settings(), QUIET) == 1
    assert output in capfd.readouterr().err


SECOND_SIGNAL = """
import asyncio, os, signal
from shared.process.run import Parts, serve
from shared.settings import Settings

async def start(process):
    async def drain(_):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    process.on_drain(drain)
    os.kill(os.getpid(), signal.SIGTERM)

raise SystemExit(serve("callback", start, Settings(), Parts(metrics=False)))
"""


# Row 32
def test_row_32_a_second_signal_stops_at_once() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SECOND_SIGNAL],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 128 + signal.SIGTERM
    assert "second signal: stopping at once" in ended.stderr


def test_the_clock_returns_seconds_and_formats_utc() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    assert before <= clock.monotonic()
    assert clock.now() > 1_700_000_000
    assert rfc3339(1_800_000_000.1239) == "2027-01-15T08:00:00.123Z"
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"


def test_finding_b4_a_process_may_open_as_many_files_as_the_system_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = min(before[1], MAX_FILES)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (allowed, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_finding_b17_a_part_that_uses_all_its_time_leaves_some_to_each_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    process = new_process(grace=25.0)
    shares: list[float] = []

    async def busy(grace: float) -> None:
        shares.append(grace)
        now = loop.time() + grace  # it uses all of its time
        monkeypatch.setattr(loop, "time", lambda: now)

    async def fast(grace: float) -> None:
        shares.append(grace)

    for drain in (busy, fast, busy, busy):
        process.on_drain(drain)
    assert await process.stop() == 0
    # 23 s without the reserve. The fast one leaves its share to the later ones.
    assert shares == pytest.approx([16.1, 2.3, 4.6, 2.3], abs=0.5)


# Row 32
async def test_row_32_work_in_flight_gets_most_of_the_shutdown_timeout() -> None:
    for grace in (25.0, 5.0):
        process = new_process(grace=grace)
        shares: list[float] = []

        async def drain(seconds: float, shares: list[float] = shares) -> None:
            shares.append(seconds)

        process.on_drain(drain)
        process.on_drain(drain)
        assert await process.stop() == 0
        assert shares[0] >= 0.7 * grace


def test_n14_a_gauge_of_a_worker_ends_with_the_worker() -> None:
    """Otherwise the last value of a killed worker stays, and an alert about it never ends."""
    for spec in SERVICES.values():
        import_module(f"{spec.module}.app")
    collectors = REGISTRY._collector_to_names  # noqa: SLF001 - families do not have the mode
    gauges = {each for each in collectors if isinstance(each, Gauge)}
    assert gauges
    assert {g._name for g in gauges if not g._multiprocess_mode.startswith("live")} == set()  # noqa: SLF001
