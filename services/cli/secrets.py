"""`ringback secrets`: maintains the encrypted secrets in the database."""

import json
from dataclasses import asdict, dataclass, field

import click
from tqdm import tqdm

from services.cli.broker import private_database, run_task
from services.cli.keys import development_key
from services.cli.output import echo
from services.journal import reseal as requests
from services.journal.app import SCHEMA as JOURNAL
from services.scheduler import reseal as callbacks
from services.scheduler.app import SCHEMA as SCHEDULER
from services.subscriptions import reseal as endpoints
from services.subscriptions.app import SCHEMA as SUBSCRIPTIONS
from shared.postgres.connection import connect
from shared.postgres.migrations import pending
from shared.process.configuration import configured
from shared.security.encryption import SecretCipher
from shared.security.settings import SecuritySettings
from shared.settings import load

# Seconds for one statement.
STATEMENT_TIMEOUT = 30.0


@dataclass(slots=True)
class Result:
    """The number of rows with secrets, and the faults of those that cannot be decrypted.

    A row is a callback, an endpoint, or a kept request of the journal.
    """

    read: int = 0
    resealed: int = 0
    skipped: int = 0
    faults: dict[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether no secret needs another key than the first."""
        return not self.skipped and not self.faults


@click.group
def secrets() -> None:
    """Maintain the encrypted secrets in the database."""


@secrets.command("reseal")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as a JSON object.")
def reseal_command(*, as_json: bool) -> None:
    """Encrypt all stored secrets again with the first key of RINGBACK_SECRETS_KEY.

    Afterwards, the other keys can be removed. First start all services with the new key in front,
    because they encrypt new secrets with it. Excerpts of responses in the journal stay as they
    are: they need the old key until the retention deletes them. The command
    works in small batches while everything runs. It is safe to interrupt and to repeat. The exit
    code is 1 if a secret still needs another key.

    \b
    Example:
      RINGBACK_SECRETS_KEY=NEW,OLD ringback secrets reseal
    """
    url = private_database()
    settings = configured(
        (SecuritySettings,), storing=() if url else ("scheduler", "subscriptions", "journal")
    )
    result = run_task(_reseal(settings.database_url or url or "", _cipher()))
    if as_json:
        echo(json.dumps(asdict(result)))
    else:
        echo(
            f"{result.resealed} of {result.read} callbacks, endpoints and kept requests encrypted"
            " again."
        )
        if result.skipped:
            echo(f"{result.skipped} of them changed at the same time. Repeat the command.")
        for fault, count in result.faults.items():
            echo(f"{count} of them: {fault}.")
        if result.complete:
            echo("No secret needs another key.")
    raise SystemExit(0 if result.complete else 1)


def _cipher() -> SecretCipher:
    key = load(SecuritySettings).secrets_key
    text = key.get_secret_value() if key else development_key("secrets_key")
    if text is None:
        raise click.ClickException(
            "Cannot encrypt secrets: RINGBACK_SECRETS_KEY is not set. Set it to the keys of the"
            " scheduler, the new one first."
        )
    return SecretCipher.of(text)


async def _reseal(url: str, cipher: SecretCipher) -> Result:
    result = Result()
    async with connect(url, statement_timeout=STATEMENT_TIMEOUT) as connection:
        for schema in (SCHEDULER, SUBSCRIPTIONS, JOURNAL):
            if await pending(connection, schema):
                raise click.ClickException(
                    "Cannot encrypt secrets: the schema is not up to date. Run `ringback migrate`."
                )
        total = await callbacks.estimated_callbacks(connection)
        with tqdm(total=total or None, unit=" callbacks", leave=False, disable=None) as bar:
            for reseal in (callbacks.reseal, endpoints.reseal, requests.reseal):
                async for batch in reseal(connection, cipher):
                    result.read += batch.read
                    result.resealed += batch.resealed
                    result.skipped += batch.skipped
                    for fault in batch.faults:
                        result.faults[fault] = result.faults.get(fault, 0) + 1
                    bar.update(batch.read)
    return result
