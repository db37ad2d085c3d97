"""`ringback report`: prints the daily report about mailings, which mailings renders."""

import json
from datetime import datetime
from typing import Any, Final

import click

from services.cli.broker import broker_settings, requesting, run_task
from services.cli.output import echo
from shared.contracts.mailing_statistics import GET_REPORT, GetReport
from shared.contracts.requests import Failure
from shared.settings import Settings

# Seconds to wait for mailings.
TIMEOUT: Final = 10.0


@click.command
@click.option(
    "--date",
    "day",
    type=click.DateTime(["%Y-%m-%d"]),
    help="Day in the time zone of the report. Default: yesterday.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as a JSON object.")
def report(day: datetime | None, *, as_json: bool) -> None:
    """Print the daily report about mailings, as text or as JSON.

    The report counts the messages that were created on a day, for the mailings of all callers. The
    command needs the broker and a running mailings service. RINGBACK_REPORT_TO lists the addresses
    that receive the report every day.

    \b
    Examples:
      ringback report
      ringback report --date 2026-11-20 --json
    """
    request = GetReport(day=None if day is None else day.date())
    response = run_task(_request(broker_settings(), request))
    if isinstance(response, Failure):
        raise click.ClickException(f"Cannot print the report: {response.detail}")
    if as_json:
        counts = {name: response[name] for name in response if name not in {"subject", "text"}}
        echo(json.dumps(counts))
    else:
        echo(response["text"].rstrip("\n"))


async def _request(settings: Settings, request: GetReport) -> Any:
    async with requesting(settings) as client:
        body = request.model_dump_json().encode()
        return await client.request(GET_REPORT.queue, GET_REPORT.name, body, timeout=TIMEOUT)
