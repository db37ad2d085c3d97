"""`ringback template`: seen before it is sent (E5)."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from services.__main__ import main


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a folder of templates."""
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


def test_list_tells_what_a_posting_has_to_give() -> None:
    listed = {row["name"]: row for row in json.loads(template("list", "--json").stdout)}

    assert listed["email/offer.md"] == {
        "name": "email/offer.md",
        "kind": "advertising",
        "channels": ["email", "sms"],
        "fetch": ["items"],
        "required": ["n"],
        "optional": ["items"],
    }
    assert listed["sms/phone_confirmation.md"]["channels"] == ["sms"]
    line = "email/offer.md: kind advertising, by email and sms, variables: n, [items*]"
    assert line in template("list").stdout.splitlines()


def test_check_names_what_is_wrong_with_its_line(here: Path) -> None:
    assert template("check").stdout == "7 checked, 0 wrong\n"

    (here / "templates/email/bad.md").write_text("---\nsubject: x\n---\n{{ a|shout }}")
    found = template("check")

    assert found.exit_code == 1
    assert found.stderr == "email/bad.md line 4: No filter named 'shout'.\n"
    assert found.stdout == "8 checked, 1 wrong\n"
    assert template("check", "email/welcome.md").exit_code == 0
    assert json.loads(template("check", "email/bad.md", "--json").stdout)["checked"] == [
        "email/bad.md"
    ]


def test_preview_of_a_shipped_template_just_works(here: Path) -> None:
    done = template("preview", "email/new_movies.md")

    assert done.exit_code == 0
    assert done.stdout.startswith("Subject: 3 new movies on Ringback\nWritten to ")
    assert "The Long Queue" in (here / "new_movies.html").read_text()
    assert template("preview", "sms/phone_confirmation.md").exit_code == 0
    assert "1234" in (here / "phone_confirmation.txt").read_text()


def test_preview_with_one_s_own_data(here: Path) -> None:
    (here / "c.json").write_text('{"n": 2, "items": [{"title": "<A>"}]}')
    (here / "u.json").write_text('{"name": "Ann"}')
    given = ("--context", "c.json", "--user", "u.json", "--out", "x.html")

    done = template("preview", "email/offer.md", *given)

    assert done.stdout.startswith("Subject: 2 for Ann\n")
    assert "<li>&lt;A&gt;</li>" in (here / "x.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("email/offer.md",), "email/offer.md line 2: n is missing in the context"),
        (("email/no.md",), "email/no.md: there is no such template; there are email/email_conf"),
        (("sms/phone_confirmation.md", "--channel", "email"), "an e-mail has a subject"),
        (("email/offer.md", "--context", "bad.json"), "--context: bad.json holds no JSON"),
        (("email/welcome.md", "--out", "no/x.html"), "no/x.html can't be written: No such file"),
    ],
)
def test_preview_says_what_is_wrong(here: Path, arguments: tuple[str, ...], told: str) -> None:
    (here / "bad.json").write_text("{")

    found = template("preview", *arguments)

    assert found.exit_code == 1
    assert told in found.stderr
