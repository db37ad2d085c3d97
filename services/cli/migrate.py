"""`ringback migrate`: every service's schema in the database, brought up to date."""

import json
from collections.abc import Callable
from typing import Any

import click

from services.cli.broker import BROKER_TIMEOUT, private_database, run_task
from services.cli.run import settings_models
from shared.postgres.connection import connect
from shared.postgres.migrations import Migration, Schema, pending
from shared.postgres.migrations import migrate as bring_up_to_date
from shared.process.configuration import configured
from shared.registry import SERVICES


@click.command
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 if something is pending.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object for each schema.")
def migrate(*, check: bool, as_json: bool) -> None:
    """Bring every service's schema in the database up to date.

    Each migration is one transaction. Run it before services of a new version start; several at
    once do no harm. Exit code 1 if it failed; what was applied before stays.

    \b
    Examples:
      ringback migrate
      ringback migrate --check
    """
    wanted = [Schema.of(spec.module) for spec in SERVICES.values() if spec.schema]
    url = private_database()
    settings = configured(
        settings_models(),
        storing=() if url else [schema.name for schema in wanted],
    )
    if settings.database_url is None:
        click.echo("Using the private PostgreSQL of this checkout.", err=True)
    url = settings.database_url or url
    assert url is not None  # noqa: S101 - else `configured` has named it

    def tell(line: str) -> None:
        if not as_json:
            click.echo(line)

    async def all_of_them() -> bool:
        clean = True
        for schema in wanted:
            result = await (_check if check else _migrate)(url, schema, tell)
            clean &= not result["pending"]
            if as_json:
                click.echo(json.dumps(result))
        return clean

    raise SystemExit(0 if run_task(all_of_them()) else 1)


async def migrate_all(url: str, schemas: list[Schema], tell: Callable[[str], None]) -> None:
    """Bring these schemas up to date, with a line for each migration.

    Raises:
        as shared.postgres.migrations.migrate.
    """
    for schema in schemas:
        await _migrate(url, schema, tell)


async def _migrate(url: str, schema: Schema, tell: Callable[[str], None]) -> dict[str, Any]:
    applied: list[str] = []

    def done(migration: Migration) -> None:
        applied.append(str(migration))
        tell(f"{schema.name}: applied {migration}")

    await bring_up_to_date(url, schema, applied=done)
    tell(f"{schema.name}: up to date, {schema.migrations[-1]}")
    return {"schema": schema.name, "applied": applied, "pending": []}


async def _check(url: str, schema: Schema, tell: Callable[[str], None]) -> dict[str, Any]:
    async with connect(url, patience=BROKER_TIMEOUT) as connection:
        lacking = [str(migration) for migration in await pending(connection, schema)]
    for migration in lacking:
        tell(f"{schema.name}: pending {migration}")
    if not lacking:
        tell(f"{schema.name}: up to date, {schema.migrations[-1]}")
    return {"schema": schema.name, "applied": [], "pending": lacking}
