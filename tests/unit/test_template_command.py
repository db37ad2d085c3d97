"""`ringback template`: list, check and preview templates (E5)."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from services.__main__ import main
from shared.registry import CHANNELS


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder that contains a folder of templates."""
    folder = tmp_path / "templates"
    (folder / "email").mkdir(parents=True)
    (folder / "email" / "offer.md").write_text(
        "---\nsubject: '{{ n }} for {{ user.name }}'\nkind: advertising\nfetch: [items]\n---\n"
        "{% for each in items|default([]) %}\n- {{ each.title }}\n{% endfor %}\n"
    )
    monkeypatch.setenv("RINGBACK_TEMPLATES_DIR", str(folder))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def template(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["template", *arguments])


def test_list_shows_the_variables_of_a_posting() -> None:
    listed = {row["name"]: row for row in json.loads(template("list", "--json").stdout)}

    assert listed["email/offer.md"] == {
        "name": "email/offer.md",
        "kind": "advertising",
        "channels": [*CHANNELS],
        "fetch": ["items"],
        "required": ["n"],
        "optional": ["items"],
    }
    assert "email" not in listed["sms/phone_confirmation.md"]["channels"]
    channels = " and ".join(CHANNELS)
    line = f"email/offer.md: kind advertising, by {channels}, variables: n, [items*]"
    assert line in template("list").stdout.splitlines()


def test_check_prints_each_error_with_its_line(directory: Path) -> None:
    assert template("check").stdout == "7 checked, 0 invalid\n"

    (directory / "templates/email/bad.md").write_text("---\nsubject: x\n---\n{{ a|shout }}")
    result = template("check")

    assert result.exit_code == 1
    assert result.stderr == "email/bad.md line 4: No filter named 'shout'.\n"
    assert result.stdout == "8 checked, 1 invalid\n"
    assert template("check", "email/welcome.md").exit_code == 0
    assert json.loads(template("check", "email/bad.md", "--json").stdout)["checked"] == [
        "email/bad.md"
    ]


def test_preview_of_a_shipped_template_uses_its_sample(directory: Path) -> None:
    result = template("preview", "email/new_movies.md")

    assert result.exit_code == 0
    assert result.stdout.startswith("Subject: 3 new movies on Ringback\nWritten to ")
    assert "The Long Queue" in (directory / "new_movies.html").read_text()
    assert template("preview", "sms/phone_confirmation.md").exit_code == 0
    assert "1234" in (directory / "phone_confirmation.txt").read_text()


def test_preview_uses_the_given_data(directory: Path) -> None:
    (directory / "c.json").write_text('{"n": 2, "items": [{"title": "<A>"}]}')
    (directory / "u.json").write_text('{"name": "Ann"}')
    given = ("--context", "c.json", "--user", "u.json", "--out", "x.html")

    result = template("preview", "email/offer.md", *given)

    assert result.stdout.startswith("Subject: 2 for Ann\n")
    assert '<li style="margin:0 0 6px">&lt;A&gt;</li>' in (directory / "x.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("email/offer.md",), "email/offer.md line 2: n is missing in the context"),
        (("email/no.md",), "email/no.md: does not exist; available: email/email_conf"),
        (("sms/phone_confirmation.md", "--channel", "email"), "email needs a subject"),
        (("email/offer.md", "--context", "bad.json"), "--context: bad.json is not valid JSON"),
        (("email/welcome.md", "--out", "no/x.html"), "Cannot write no/x.html: No such file"),
    ],
)
def test_preview_reports_invalid_input(
    directory: Path, arguments: tuple[str, ...], reason: str
) -> None:
    (directory / "bad.json").write_text("{")

    result = template("preview", *arguments)

    assert result.exit_code == 1
    assert reason in result.stderr
