"""`ringback template`: what messages look like, tried without sending anything."""

import json
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

import click

from services.mailings.rendering.bound_template import BoundTemplate, RenderingError
from services.mailings.rendering.loader import (
    SHIPPED,
    InvalidTemplateError,
    Template,
    TemplateLoader,
    channel_of,
)
from shared.process.configuration import configured
from shared.registry import CHANNELS

FILE: Final = click.Path(dir_okay=False, path_type=Path)
PRODUCT: Final = "Ringback"
UNSUBSCRIBE_URL: Final = "https://example.com/unsubscribe"


@click.group
def template() -> None:
    """Templates: what messages look like. docs/templates.md explains how they are written."""


@template.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_(*, as_json: bool) -> None:
    """List the shipped templates, and those in RINGBACK_TEMPLATES_DIR.

    Each with the kind of notification that it is, and the variables that a posting has to give:
    those in brackets may be left out, those with a star are fetched from a URL.
    """
    library = TemplateLoader(configured().templates_dir)
    rows = []
    for name in library.names():
        try:
            rows.append(_row(library.get(name, channel_of(name)), library))
        except InvalidTemplateError as error:
            click.echo(f"wrong: {error}", err=True)
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        variables = [name + "*" * (name in row["fetch"]) for name in row["required"]]
        variables += [f"[{name}{'*' * (name in row['fetch'])}]" for name in row["optional"]]
        click.echo(
            f"{row['name']}: kind {row['kind']}, by {' and '.join(row['channels'])},"
            f" variables: {', '.join(variables) or 'none'}"
        )


@template.command
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def check(names: tuple[str, ...], *, as_json: bool) -> None:
    """Check templates, by default all there are, and name what is wrong with its line.

    Shipped ones are rendered too, with the sample that comes with them. Exit code 1 if something is
    wrong.

    \b
    Examples:
      ringback template check
      ringback template check email/new_movies.md
    """
    library = TemplateLoader(configured().templates_dir)
    samples = _samples()
    faults = []
    checked = names or tuple(library.names())
    for name in checked:
        try:
            found = library.get(name, channel_of(name))
            if name in samples and not found.own:
                edition = BoundTemplate(found, channel_of(name), samples[name], PRODUCT)
                edition.render(samples["user"], unsubscribe_url=UNSUBSCRIBE_URL)
        except (InvalidTemplateError, RenderingError) as error:
            faults.append(str(error))
    if as_json:
        click.echo(json.dumps({"checked": checked, "faults": faults}))
    else:
        for fault in faults:
            click.echo(fault, err=True)
        click.echo(f"{len(checked)} checked, {len(faults)} wrong")
    if faults:
        raise SystemExit(1)


@template.command
@click.argument("name")
@click.option(
    "--context",
    type=click.File("rb"),
    help="A JSON object with the posting's variables; of those that are fetched, the data itself."
    " Default for shipped templates: a sample.",
)
@click.option("--user", type=click.File("rb"), help="A user as JSON. Default: a sample.")
@click.option(
    "--channel", type=click.Choice([*CHANNELS]), help="Default: the template's folder says it."
)
@click.option("--out", type=FILE, help="The file to write. Default: here, NAME.html or NAME.txt.")
def preview(
    name: str,
    *,
    context: IO[bytes] | None,
    user: IO[bytes] | None,
    channel: str | None,
    out: Path | None,
) -> None:
    """Render a template into a file: HTML for e-mail, text for SMS.

    \b
    Examples:
      ringback template preview email/new_movies.md
      ringback template preview email/offer.md --context offer.json --user ann.json --out offer.html
    """
    samples = _samples()
    channel = channel or channel_of(name)
    given = samples.get(name, {}) if context is None else _object(context, "--context")
    receiver = samples["user"] if user is None else _object(user, "--user")
    has_link = "unsubscribe_url" in CHANNELS[channel].contract.model_fields
    try:
        found = TemplateLoader(configured().templates_dir).get(name, channel)
        edition = BoundTemplate(found, channel, given, PRODUCT)
        rendered = edition.render(receiver, unsubscribe_url=UNSUBSCRIBE_URL if has_link else None)
    except (InvalidTemplateError, RenderingError) as error:
        raise click.ClickException(str(error)) from None
    content = rendered.html or rendered.text + "\n"
    file = out or Path(PurePosixPath(name).stem + (".html" if rendered.html else ".txt"))
    try:
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{file} can't be written: {error.strerror}") from None
    if rendered.subject:
        click.echo(f"Subject: {rendered.subject}")
    click.echo(f"Written to {file.resolve()}")


def _samples() -> dict[str, Any]:
    samples: dict[str, Any] = json.loads(SHIPPED.joinpath("samples.json").read_text("utf-8"))
    return samples


def _object(file: IO[bytes], option: str) -> dict[str, Any]:
    try:
        value = json.load(file)
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"{option}: {file.name} holds no JSON: {error}") from None
    if not isinstance(value, dict):
        raise click.ClickException(f"{option}: {file.name} must hold a JSON object")
    return value


def _row(found: Template, library: TemplateLoader) -> dict[str, Any]:
    return {
        "name": found.name,
        "kind": found.kind,
        "channels": library.channels(found.name),
        "fetch": list(found.fetch),
        "required": sorted(found.program.required),
        "optional": sorted(found.program.optional),
    }
