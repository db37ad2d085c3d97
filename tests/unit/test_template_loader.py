"""E5: what a template's file may hold, and what is said of one that is wrong."""

import os
from pathlib import Path

import pytest

from services.mailings.rendering.loader import InvalidTemplateError, TemplateLoader

HEAD = "---\nsubject: Hi\n---\n"


def put(folder: Path, name: str, content: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


def test_e5_front_matter_says_kind_and_what_is_fetched(tmp_path: Path) -> None:
    put(
        tmp_path,
        "email/offers.md",
        "---\nsubject: '{{ n }} offers'\nkind: advertising\nfetch: [offers]\n---\n"
        "{{ offers|join }}{{ more|default('') }}",
    )

    template = TemplateLoader(tmp_path).get("email/offers.md", "email")

    assert (template.name, template.kind, template.fetch) == (
        "email/offers.md",
        "advertising",
        ("offers",),
    )
    assert template.program.required == {"n": 2, "offers": 6}
    assert template.program.optional == {"more"}


def test_e5_a_template_of_the_folder_comes_before_the_shipped_one(tmp_path: Path) -> None:
    put(tmp_path, "email/welcome.md", "---\nsubject: Hi\nkind: other\n---\nours")
    library = TemplateLoader(tmp_path)

    assert library.get("email/welcome.md", "email").kind == "other"
    assert library.get("email/new_movies.md", "email").fetch == ("movies",)


@pytest.mark.parametrize(
    ("asked", "channel", "found"),
    [
        ("email/both.md", "sms", "sms/both.md"),
        ("sms/both.md", "email", "email/both.md"),
        ("email/both.md", "email", "email/both.md"),
        ("email/alone.md", "sms", "email/alone.md"),
        ("other/x.md", "sms", "other/x.md"),
    ],
)
def test_e5_the_twin_of_the_way_is_taken(
    tmp_path: Path, asked: str, channel: str, found: str
) -> None:
    for name in ("email/both.md", "sms/both.md", "email/alone.md", "other/x.md"):
        put(tmp_path, name, HEAD)

    template = TemplateLoader(tmp_path).get(asked, channel)

    assert (template.name, template.kind) == (found, Path(found).stem)


def test_e5_a_changed_template_is_read_again(tmp_path: Path) -> None:
    file = put(tmp_path, "email/x.md", HEAD)
    library = TemplateLoader(tmp_path)
    first = library.get("email/x.md", "email")
    assert library.get("email/x.md", "email") is first

    file.write_text("---\nsubject: Hi\nkind: news\n---\n")
    os.utime(file, ns=(1, 1))

    assert library.get("email/x.md", "email").kind == "news"


@pytest.mark.parametrize(
    "name", ["../x.md", "/etc/passwd", "email/../../x.md", ".md", "email/x.txt", "", "e/\0.md"]
)
def test_e5_a_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    put(tmp_path, "x.md", HEAD)

    with pytest.raises(InvalidTemplateError, match="is no name such as"):
        TemplateLoader(tmp_path / "email").get(name, "email")


def test_e5_an_unknown_template_is_told_with_those_there_are(tmp_path: Path) -> None:
    put(tmp_path, "email/mine.md", HEAD)

    with pytest.raises(
        InvalidTemplateError,
        match=r"email/no.md: there is no such template; there are .*"
        r"email/mine.md, email/new_episode.md",
    ):
        TemplateLoader(tmp_path).get("email/no.md", "email")


def test_e5_an_sms_has_no_subject_so_it_is_no_e_mail() -> None:
    with pytest.raises(
        InvalidTemplateError, match=r"sms/phone_confirmation.md: an e-mail has a subject"
    ):
        TemplateLoader(None).get("sms/phone_confirmation.md", "email")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("---\nsubject: x\n", "line 1: the front matter has no end"),
        ("---\nsubject: x\nlayout: y\n---\n", "line 3: there is no key 'layout'; there are subj"),
        ("---\nsubject: x\nsubject: y\n---\n", "line 3: subject is given twice"),
        ("---\nsubject: [x]\n---\n", "line 2: subject must be a text"),
        ("---\nsubject: a: b\n---\n", "line 2: is no YAML: mapping values are not allowed"),
        ("---\n- x\n---\n", "line 2: the front matter must be keys and values"),
        ("---\nkind: a b\n---\n", "line 2: kind must be a word"),
        ("---\nfetch: movies\n---\n", "line 2: fetch must be a list of variables"),
        ("---\nfetch: [movie]\n---\n{{ movies }}", "line 2: fetch names 'movie', which the"),
        ("---\nkind: x\nsubject: '{{ a'\n---\n", "line 3: unexpected end of template"),
        (HEAD + "a\n{{ b }\n", "line 5: unexpected '}'"),
        (HEAD + "a\n\n{% if b %}\n", "line 6: Unexpected end of template"),
        (HEAD + "{{ b|shout }}", "line 4: No filter named 'shout'"),
        (HEAD + "\n{% include 'x' %}", "line 5: include is not possible here"),
        (HEAD + "{% extends 'x' %}", "line 4: extends is not possible here"),
        (HEAD + "{% macro a() %}{% endmacro %}", "line 4: macro is not possible here"),
        (HEAD + "{% filter upper %}{% endfilter %}", "line 4: filterblock is not possible here"),
        (HEAD + "{{ user.name.format(1) }}", "line 4: calls are not possible here"),
        (HEAD + "{{ 9 ** 9 }}", "line 4: powers are not possible here"),
        (HEAD + "{% set user = 1 %}", "line 4: user can't be set"),
        (HEAD + "{{ _slot }}", "line 4: a name begins with a letter"),
        (HEAD + "a\n\x00", "line 5: holds a control character"),
    ],
)
def test_e5_a_wrong_template_is_told_with_line_and_reason(
    tmp_path: Path, content: str, told: str
) -> None:
    put(tmp_path, "email/x.md", content)

    with pytest.raises(InvalidTemplateError) as caught:
        TemplateLoader(tmp_path).get("email/x.md", "email")

    assert str(caught.value).startswith(f"email/x.md {told}")


def test_e5_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    put(tmp_path, "email/x.md", "").write_bytes(b"a\n\xff")
    put(tmp_path, "email/y.md", "x" * 300_000)

    with pytest.raises(InvalidTemplateError, match=r"x.md line 2: is not in UTF-8"):
        TemplateLoader(tmp_path).get("email/x.md", "email")
    with pytest.raises(InvalidTemplateError, match=r"y.md: is larger than 262144 bytes"):
        TemplateLoader(tmp_path).get("email/y.md", "email")


def test_e5_windows_line_ends_are_no_different(tmp_path: Path) -> None:
    put(tmp_path, "email/x.md", HEAD.replace("\n", "\r\n") + "a\r\n{{ a }}")

    template = TemplateLoader(tmp_path).get("email/x.md", "email")

    assert template.program.required == {"a": 5}
