"""`ringback migrate`: applies the migrations of every service."""

import json
from collections.abc import Callable
from typing import Any

import click

from services.cli.broker import BROKER_TIMEOUT, private_database, run_task
from services.cli.output import echo
from services.cli.run import settings_models
from shared.postgres.connection import connect
from shared.postgres.migrations import Migration, Schema, pending
from shared.postgres.migrations import migrate as apply_migrations
from shared.process.configuration import configured
from shared.registry import SERVICES


@click.command
@click.option(
    "--check", is_flag=True, help="Change nothing; exit with 1 if a migration is pending."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each schema.")
def migrate(*, check: bool, as_json: bool) -> None:
    """Apply the migrations of every service to the database.

    Each migration is one transaction. Run this command before you start services of a new version.
    It is safe to run it several times or in several places. The exit code is 1 if a migration
    failed. The migrations before it stay applied.

    \b
    Examples:
      ringback migrate
      ringback migrate --check
    """
    schemas = [Schema.of(spec.module) for spec in SERVICES.values() if spec.schema]
    url = private_database()
    settings = configured(
        settings_models(),
        storing=() if url else [schema.name for schema in schemas],
        here=False,
    )
    if settings.database_url is None:
        click.echo("Using the private PostgreSQL of this checkout.", err=True)
    url = settings.database_url or url
    assert url is not None  # noqa: S101 - otherwise `configured` has raised

    def report(line: str) -> None:
        if not as_json:
            echo(line)

    async def process_all() -> bool:
        clean = True
        for schema in schemas:
            result = await (_check if check else _migrate)(url, schema, report)
            clean &= not result["pending"]
            if as_json:
                echo(json.dumps(result))
        return clean

    raise SystemExit(0 if run_task(process_all()) else 1)


async def migrate_all(url: str, schemas: list[Schema], report: Callable[[str], None]) -> None:
    """Apply the migrations of these schemas, and report a line for each.

    Raises:
        RingbackError: see shared.postgres.migrations.migrate.
    """
    for schema in schemas:
        await _migrate(url, schema, report)


async def _migrate(url: str, schema: Schema, report: Callable[[str], None]) -> dict[str, Any]:
    applied: list[str] = []

    def done(migration: Migration) -> None:
        applied.append(str(migration))
        report(f"{schema.name}: applied {migration}")

    await apply_migrations(url, schema, applied=done)
    report(f"{schema.name}: up to date, {schema.migrations[-1]}")
    return {"schema": schema.name, "applied": applied, "pending": []}


async def _check(url: str, schema: Schema, report: Callable[[str], None]) -> dict[str, Any]:
    async with connect(url, statement_timeout=BROKER_TIMEOUT) as connection:
        waiting = [str(migration) for migration in await pending(connection, schema)]
    for migration in waiting:
        report(f"{schema.name}: pending {migration}")
    if not waiting:
        report(f"{schema.name}: up to date, {schema.migrations[-1]}")
    return {"schema": schema.name, "applied": [], "pending": waiting}
