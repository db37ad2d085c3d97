"""The next version of Ringback: a copy of this one, with edits as a release would make them.

Each schema gets a migration, each internal message, fact, request and response a field, and each
fact with an owner is followed by one of a new type. Only the next version sends all of these.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

from shared.postgres.migrations import migrations

ROOT = Path(__file__).parents[2]
TABLES = {
    "scheduler": "scheduler.scheduled_callbacks",
    "ingestion": "ingestion.outbox",
    "mailings": "mailings.messages",
    "delivery": "delivery.messages",
    "subscriptions": "subscriptions.user_events",
    "journal": "journal.minutes",
    "console": "console.sessions",
}
FIELD = "added_later"
ATTEMPT = '    attempt: int = Field(description="Number of the attempt, from 1.")\n'
OPTIONAL = f"    {FIELD}: str | None = None\n"
PRESENT = f'    {FIELD}: str = "x"\n'


class Edit(NamedTuple):
    """Replaces the only `before` in a file; `after` may contain it as `{}`."""

    file: str
    before: str
    after: str


EDITS = (
    # SendCallback, which the scheduler publishes as text.
    Edit(
        "shared/contracts/callback.py", "    client_id: ClientId | None = None\n", "{}" + OPTIONAL
    ),
    Edit(
        "services/scheduler/messages.py",
        '        "target_url": command.url,\n',
        f'{{}}        "{FIELD}": "x",\n',
    ),
    # The commands of rules.
    Edit("shared/contracts/postings.py", "    template: Template\n", "{}" + OPTIONAL),
    Edit(
        "services/ingestion/outbox.py",
        "        pending.command.body,\n",
        f'        pending.command.body[:-1] + b\',"{FIELD}":"x"}}\',\n',
    ),
    # Rendered messages.
    Edit("shared/contracts/messages.py", "    user_id: ClientId | None = Field(", PRESENT + "{}"),
    # Events that arrive over HTTP.
    Edit("shared/contracts/events.py", "    from_service: Word\n", "{}" + OPTIONAL),
    Edit(
        "shared/http/event_publishing.py",
        "        _EVENT.routing_key_of(event), properties, body, exchange=_EVENT.exchange\n",
        "        _EVENT.routing_key_of(event),\n        properties,\n"
        f'        body[:-1] + b\',"{FIELD}":"x"}}\',\n        exchange=_EVENT.exchange,\n',
    ),
    # Requests, with a header of their context, and responses.
    Edit(
        "shared/contracts/schedule_requests.py",
        "    callback: ScheduleCallback\n    idempotency_key",
        f"{OPTIONAL}{{}}",
    ),
    Edit(
        "shared/contracts/schedule_requests.py",
        "    id: UUID\n    status: Status\n    run_at: AwareDatetime\n\n",
        f"    id: UUID\n    status: Status\n    run_at: AwareDatetime\n{PRESENT}\n",
    ),
    Edit(
        "services/gateway/routes/callbacks.py",
        """b'{"callback":%b,"idempotency_key":%b}'""",
        f"""b'{{"{FIELD}":"x","callback":%b,"idempotency_key":%b}}'""",
    ),
    Edit(
        "shared/amqp/rpc.py",
        "        headers.CLIENT_ID: context.client_id,\n",
        f'        "x-ringback-{FIELD}": "x",\n{{}}',
    ),
    # Facts, and facts of a new type.
    Edit("shared/contracts/facts.py", ATTEMPT, "{}" + PRESENT),
    Edit("shared/contracts/message_facts.py", ATTEMPT, "{}" + PRESENT),
    Edit("shared/contracts/schedule_facts.py", "    attempts: int\n", "{}" + PRESENT),
    Edit(
        "shared/amqp/facts.py",
        "    owned = [fact for fact in facts if _owner(fact)]\n",
        "{}    owned += [_Added(owner=_owner(each)) for each in owned]\n",
    ),
    Edit(
        "shared/amqp/facts.py",
        "def _owner(fact: Any) -> str:",
        'class _Added(BaseModel):\n    type: str = "added.later"\n    owner: str\n\n\n{}',
    ),
)


def next_version(directory: Path) -> Path:
    """Create the next version in `directory`, and return it, for PYTHONPATH."""
    for package in ("services", "shared"):
        shutil.copytree(
            ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file, before, after in EDITS:
        path = directory / file
        text = path.read_text()
        assert text.count(before) == 1, f"{file} has changed: adapt the edit of {before!r}"
        path.write_text(text.replace(before, after.replace("{}", before)))
    for service, table in TABLES.items():
        number = len(migrations(f"services.{service}")) + 1
        folder = directory / "services" / service / "sql" / "migrations"
        (folder / f"{number:04}_{FIELD}.sql").write_text(
            f"ALTER TABLE {table} ADD COLUMN {FIELD} text;\n"
        )
    return directory
