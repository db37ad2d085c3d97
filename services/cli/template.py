"""`ringback template`: lists, checks and previews templates without sending anything."""

import json
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

import click

from services.cli.output import echo
from services.mailings.rendering.bound_template import BoundTemplate, RenderingError
from services.mailings.rendering.formats import FORMATS
from services.mailings.rendering.loader import (
    InvalidTemplateError,
    Template,
    TemplateLoader,
    channel_of,
)
from services.mailings.rendering.samples import samples
from services.mailings.settings import MailingsSettings
from shared.process.configuration import configured_table
from shared.registry import CHANNELS

FILE: Final = click.Path(dir_okay=False, path_type=Path)
PRODUCT: Final = "Ringback"
UNSUBSCRIBE_URL: Final = "https://example.com/unsubscribe"


@click.group
def template() -> None:
    """List, check and preview templates. docs/templates.md explains how to write them."""


@template.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_(*, as_json: bool) -> None:
    """List the shipped templates and those in RINGBACK_TEMPLATES_DIR.

    For each template, the command prints its kind, its channels and the variables of a posting.
    Variables in brackets are optional. Variables with a star are fetched from a URL.
    """
    loader = configured_table(MailingsSettings).templates()
    rows = []
    for name in loader.names():
        try:
            rows.append(_row(loader.get(name, channel_of(name)), loader))
        except InvalidTemplateError as error:
            click.echo(f"invalid: {error}", err=True)
    if as_json:
        echo(json.dumps(rows))
        return
    for row in rows:
        variables = [name + "*" * (name in row["fetch"]) for name in row["required"]]
        variables += [f"[{name}{'*' * (name in row['fetch'])}]" for name in row["optional"]]
        echo(
            f"{row['name']}: kind {row['kind']}, by {' and '.join(row['channels'])},"
            f" variables: {', '.join(variables) or 'none'}"
        )


@template.command
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def check(names: tuple[str, ...], *, as_json: bool) -> None:
    """Check templates, all by default, and print each error with its line.

    Shipped templates are also rendered with sample data. The exit code is 1 if a template is not
    valid.

    \b
    Examples:
      ringback template check
      ringback template check email/new_movies.md
    """
    loader = configured_table(MailingsSettings).templates()
    known = samples()
    errors = []
    checked = names or tuple(loader.names())
    for name in checked:
        try:
            found = loader.get(name, channel_of(name))
            if name in known and found.is_shipped:
                bound = BoundTemplate(found, channel_of(name), known[name], PRODUCT)
                bound.render(known["user"], unsubscribe_url=UNSUBSCRIBE_URL)
        except (InvalidTemplateError, RenderingError) as error:
            errors.append(str(error))
    errors = list(dict.fromkeys(errors))  # each e-mail has the error of the frame
    if as_json:
        echo(json.dumps({"checked": checked, "errors": errors}))
    else:
        for error_text in errors:
            click.echo(error_text, err=True)
        echo(f"{len(checked)} checked, {len(errors)} invalid")
    if errors:
        raise SystemExit(1)


@template.command
@click.argument("name")
@click.option(
    "--context",
    type=click.File("rb"),
    help="A JSON object with the variables of the posting. A fetched variable contains the data"
    " itself. Default for shipped templates: a sample.",
)
@click.option("--user", type=click.File("rb"), help="A user as a JSON object. Default: a sample.")
@click.option(
    "--channel", type=click.Choice([*CHANNELS]), help="Channel. Default: that of the folder."
)
@click.option("--out", type=FILE, help="The file to write. Default: NAME.html or NAME.txt.")
def preview(
    name: str,
    *,
    context: IO[bytes] | None,
    user: IO[bytes] | None,
    channel: str | None,
    out: Path | None,
) -> None:
    """Render a template to a file: HTML for an e-mail, otherwise text.

    \b
    Examples:
      ringback template preview email/new_movies.md
      ringback template preview email/offer.md --context offer.json --user ann.json --out offer.html
    """
    known = samples()
    channel = channel or channel_of(name)
    variables = known.get(name, {}) if context is None else _object(context, "--context")
    recipient = known["user"] if user is None else _object(user, "--user")
    try:
        found = configured_table(MailingsSettings).templates().get(name, channel)
        bound = BoundTemplate(found, channel, variables, PRODUCT)
        url = UNSUBSCRIBE_URL if FORMATS[channel].has_html else None
        rendered = bound.render(recipient, unsubscribe_url=url)
    except (InvalidTemplateError, RenderingError) as error:
        raise click.ClickException(str(error)) from None
    content = rendered.html or rendered.text + "\n"
    file = out or Path(PurePosixPath(name).stem + (".html" if rendered.html else ".txt"))
    try:
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"Cannot write {file}: {error.strerror}.") from None
    if rendered.subject:
        echo(f"Subject: {rendered.subject}")
    echo(f"Written to {file.resolve()}")


def _object(file: IO[bytes], option: str) -> dict[str, Any]:
    try:
        value = json.load(file)
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"{option}: {file.name} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise click.ClickException(f"{option}: {file.name} must contain a JSON object")
    return value


def _row(found: Template, loader: TemplateLoader) -> dict[str, Any]:
    return {
        "name": found.name,
        "kind": found.kind,
        "channels": loader.channels(found.name),
        "fetch": list(found.fetch),
        "required": sorted(found.compiled.required),
        "optional": sorted(found.compiled.optional),
    }
