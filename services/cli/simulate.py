"""`ringback simulate`: what would happen with these targets, rates, failures and settings."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

import click
from tqdm import tqdm

from services.callback.settings import CallbackSettings
from services.cli.broker import run_task
from services.cli.output import aligned, echo
from services.console.formatting import duration
from services.simulator import scenario
from services.simulator.drawing import draw
from services.simulator.engine import simulate as run_simulation
from services.simulator.figures import Result
from services.simulator.scenario import InvalidScenarioError, Response, Scenario
from shared.contracts.durations import seconds
from shared.process.configuration import configured_table
from shared.process.logs import printable

EXAMPLE: Final = Path(scenario.__file__).with_name("example.toml")
_COLUMNS: Final = {
    "target": "TARGET",
    "callbacks": "CALLBACKS",
    "attempts": "ATTEMPTS",
    "delivered": "DELIVERED",
    "dead": "DEAD",
    "waiting": "WAITING",
    "delay_p50": "P50",
    "delay_p90": "P90",
    "delay_p99": "P99",
    "last_delivery": "LAST",
    "deepest": "DEEPEST TIER",
    "peak_messages_per_second": "PEAK MSG/S",
}
_TIMES: Final = frozenset({"delay_p50", "delay_p90", "delay_p99", "last_delivery"})


class Seconds(click.ParamType[float]):
    """A number of seconds, or a text such as "2 hours"."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the seconds."""
        try:
            return float(value)
        except ValueError:
            pass
        try:
            return seconds(value)
        except ValueError as error:
            self.fail(f"{error}, or a number of seconds.", param, ctx)


class ResponseType(click.ParamType[Response]):
    """A status, or what a receiver does instead of responding."""

    name = "response"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Response:
        """Return the status as a number, or the word."""
        if value in {"timeout", "unreachable", "refused"}:
            return value  # type: ignore[no-any-return]
        if not str(value).isdecimal():
            self.fail("must be timeout, unreachable, refused, or a status such as 503.", param, ctx)
        return int(value)


@click.command
@click.argument("file", type=click.File("r", encoding="utf-8-sig"), required=False)
@click.option("--rate", type=float, help="Callbacks a second to one target, instead of FILE.")
@click.option(
    "--down", type=Seconds(), help="Duration of an outage of the target. It starts after a minute."
)
@click.option(
    "--response",
    type=ResponseType(),
    help="Response during the outage: timeout (default), unreachable, refused, or a status.",
)
@click.option("--failing", type=float, help="Probability that an attempt gets 500, from 0 to 1.")
@click.option("--latency", type=float, help="Seconds until a response. Default: 0.1.")
@click.option(
    "--for",
    "duration",
    type=Seconds(),
    help="Duration for which callbacks are created. Default: until 10 min after the outage.",
)
@click.option("--workers", type=int, help="Processes of the callback service. Default: 1.")
@click.option("--seed", type=int, help="Seed of the random numbers. Default: that of FILE, or 1.")
@click.option(
    "--svg", type=click.File("w", encoding="utf-8", lazy=True), help="Write a plot to this file."
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print a JSON object, which also has the counts over time.",
)
@click.option("--example", is_flag=True, help="Print an example of FILE.")
def simulate(  # noqa: PLR0913 - the options of the command
    file: IO[str] | None,
    rate: float | None,
    seed: int | None,
    svg: IO[str] | None,
    *,
    as_json: bool,
    example: bool,
    **one_target: Any,
) -> None:
    """Show what would happen with these targets, rates, failures and retries.

    The simulation makes its decisions with the code of the services: lanes, circuit breakers, retry
    tiers and main retries. It uses the settings of the callback service in ringback.toml. It needs
    no broker. The same seed gives the same result.

    For each target, the table shows: callbacks, attempts, delivered, dead and waiting callbacks,
    percentiles of the delay, the time of the last delivery, the tier that held the most callbacks,
    and the most messages that the broker stored in one second.

    \b
    Examples:
      ringback simulate --rate 20 --down "2 hours"     one target is down for two hours
      ringback simulate --rate 20 --failing 0.1 --svg plot.svg
      ringback simulate --example > simulation.toml    several targets, in a file
      ringback simulate simulation.toml --json | jq '.targets[].attempts'
    """
    if example:
        echo(EXAMPLE.read_text(encoding="utf-8"), nl=False)
        return
    if (file is None) == (rate is None):
        raise click.UsageError("Give either FILE or --rate. `--example` prints an example of FILE.")
    options = {name: value for name, value in one_target.items() if value is not None}
    if file is not None and options:
        raise click.UsageError(
            "FILE cannot be combined with options such as --down. Set these values in the file."
        )
    if "response" in options and "down" not in options:
        raise click.UsageError("--response applies to an outage. Set its duration with --down.")
    given, settings = _input(file, seed, {"rate": rate} | options)
    result = _run(given, settings)
    if svg is not None:
        try:
            svg.write(draw(result))
        except OSError as error:
            raise click.ClickException(
                f"Cannot write {svg.name}: {error.strerror}. Choose another file for --svg."
            ) from None
    if as_json:
        content = {
            "seconds": result.seconds,
            "targets": result.rows(),
            "course": result.series(),
        }
        echo(json.dumps(content, ensure_ascii=False))
        return
    cells = [[_cell(name, row) for name in _COLUMNS] for row in result.rows()]
    for line in aligned([list(_COLUMNS.values()), *cells]):
        echo(line)
    click.echo(f"Simulated {duration(result.seconds)} with seed {given.seed}.", err=True)


def _input(
    file: IO[str] | None, seed: int | None, options: dict[str, Any]
) -> tuple[Scenario, CallbackSettings]:
    """Return the scenario in a file, or else that of the options, and the settings.

    Raises:
        click.ClickException: with every fault.
    """
    try:
        given = scenario.one_target(**options) if file is None else scenario.parse(file.read())
        if seed is not None:
            given = given.model_copy(update={"seed": seed})
        return given, scenario.callback_settings(given, configured_table(CallbackSettings))
    except UnicodeDecodeError:
        faults = ["the file is not UTF-8"]
    except InvalidScenarioError as error:
        faults = error.faults
    raise click.ClickException(
        "Cannot simulate: the input is not valid. Correct these fields.\n"
        + "\n".join(f"  {fault}" for fault in faults)
    )


def _run(given: Scenario, settings: CallbackSettings) -> Result:
    with tqdm(
        total=given.callbacks, unit=" callbacks", leave=False, disable=not sys.stderr.isatty()
    ) as bar:

        def progress(finished: int) -> None:
            bar.update(finished - bar.n)

        return run_task(run_simulation(given, settings, progress))


def _cell(name: str, row: Mapping[str, Any]) -> str:
    if name == "deepest":
        tier = row["deepest_tier"]
        return "-" if tier is None else f"{tier}: {row['deepest_tier_waiting']:,}"
    value = row[name]
    if value is None:
        return "-"
    if name in _TIMES:
        return duration(value)
    return f"{value:,}" if isinstance(value, int) else printable(str(value))
