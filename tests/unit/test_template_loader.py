"""E5: the format of template files, and the errors for invalid ones."""

import os
import re
from pathlib import Path

import pytest

from services.mailings.rendering.bound_template import BoundTemplate
from services.mailings.rendering.formats import Rendered
from services.mailings.rendering.loader import (
    InvalidTemplateError,
    TemplateLoader,
    parse_template,
    parse_text,
)
from tests.fakes.rendering import ParsedHtml

HEAD = "---\nsubject: Hi\n---\n"


def put(folder: Path, name: str, content: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


def test_e5_front_matter_sets_kind_and_fetched_variables(tmp_path: Path) -> None:
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
    assert template.compiled.required == {"n": 2, "offers": 6}
    assert template.compiled.optional == {"more"}


def test_e5_a_template_in_the_folder_replaces_the_shipped_one(tmp_path: Path) -> None:
    put(tmp_path, "email/welcome.md", "---\nsubject: Hi\nkind: other\n---\nours")
    loader = TemplateLoader(tmp_path)

    assert loader.get("email/welcome.md", "email").kind == "other"
    assert loader.get("email/new_movies.md", "email").fetch == ("movies",)


@pytest.mark.parametrize(
    ("name", "channel", "expected"),
    [
        ("email/both.md", "sms", "sms/both.md"),
        ("sms/both.md", "email", "email/both.md"),
        ("email/both.md", "email", "email/both.md"),
        ("email/alone.md", "sms", "email/alone.md"),
        ("other/x.md", "sms", "other/x.md"),
    ],
)
def test_e5_the_template_in_the_folder_of_the_channel_is_preferred(
    tmp_path: Path, name: str, channel: str, expected: str
) -> None:
    for each in ("email/both.md", "sms/both.md", "email/alone.md", "other/x.md"):
        put(tmp_path, each, HEAD)

    template = TemplateLoader(tmp_path).get(name, channel)

    assert (template.name, template.kind) == (expected, Path(expected).stem)


def test_e5_a_changed_template_is_read_again(tmp_path: Path) -> None:
    file = put(tmp_path, "email/x.md", HEAD)
    loader = TemplateLoader(tmp_path)
    first = loader.get("email/x.md", "email")
    assert loader.get("email/x.md", "email") is first

    file.write_text("---\nsubject: Hi\nkind: news\n---\n")
    os.utime(file, ns=(1, 1))

    assert loader.get("email/x.md", "email").kind == "news"


@pytest.mark.parametrize(
    "name", ["../x.md", "/etc/passwd", "email/../../x.md", ".md", "email/x.txt", "", "e/\0.md"]
)
def test_e5_a_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    put(tmp_path, "x.md", HEAD)

    with pytest.raises(InvalidTemplateError, match="is not a valid name"):
        TemplateLoader(tmp_path / "email").get(name, "email")


def test_e5_the_error_for_an_unknown_template_lists_the_available_ones(tmp_path: Path) -> None:
    put(tmp_path, "email/mine.md", HEAD)

    with pytest.raises(
        InvalidTemplateError,
        match=r"email/no.md: does not exist; available: .*"
        r"email/mine.md, email/new_episode.md",
    ):
        TemplateLoader(tmp_path).get("email/no.md", "email")


def test_e5_an_sms_template_without_a_subject_cannot_be_sent_as_an_email() -> None:
    with pytest.raises(
        InvalidTemplateError, match=r"sms/phone_confirmation.md: email needs a subject"
    ):
        TemplateLoader(None).get("sms/phone_confirmation.md", "email")


def test_m2_a_text_with_too_many_values_is_rejected_before_it_is_compiled() -> None:
    parse_text("{{ user.tag }}" * 199)
    with pytest.raises(InvalidTemplateError, match="has too many values and tags from here"):
        parse_text("{{ user.tag }}" * 200)


@pytest.mark.parametrize("number", ["9" * 4500, "0x" + "f" * 9000])
def test_m2_and_row_26_a_number_that_is_too_long_is_rejected(number: str) -> None:
    with pytest.raises(InvalidTemplateError, match="contains a number that is too long"):
        parse_text(f"{{{{ {number} }}}}")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("---\nsubject: x\n", "line 1: the front matter does not end with ---"),
        ("---\nsubject: x\nlayout: y\n---\n", "line 3: unknown key 'layout'; available: subj"),
        ("---\nsubject: x\nsubject: y\n---\n", "line 3: duplicate key subject"),
        ("---\nsubject: [x]\n---\n", "line 2: subject must be a text"),
        ("---\nsubject: a: b\n---\n", "line 2: is not valid YAML: mapping values are not allowed"),
        ("---\n- x\n---\n", "line 2: the front matter must contain keys and values"),
        ("---\nkind: a b\n---\n", "line 2: kind must be a word"),
        ("---\nfetch: movies\n---\n", "line 2: fetch must be a list of variables"),
        ("---\nfetch: [movie]\n---\n{{ movies }}", "line 2: fetch names 'movie', which the"),
        ("---\nkind: x\nsubject: '{{ a'\n---\n", "line 3: unexpected end of template"),
        (HEAD + "a\n{{ b }\n", "line 5: unexpected '}'"),
        (HEAD + "a\n\n{% if b %}\n", "line 6: Unexpected end of template"),
        (HEAD + "{{ b|shout }}", "line 4: No filter named 'shout'"),
        (HEAD + "\n{% include 'x' %}", "line 5: include is not available"),
        (HEAD + "{% extends 'x' %}", "line 4: extends is not available"),
        (HEAD + "{% macro a() %}{% endmacro %}", "line 4: macro is not available"),
        (HEAD + "{% filter upper %}{% endfilter %}", "line 4: filterblock is not available"),
        (HEAD + "{{ user.name.format(1) }}", "line 4: calls are not available"),
        (HEAD + "{{ 9 ** 9 }}", "line 4: powers are not available"),
        (HEAD + "{% set user = 1 %}", "line 4: user cannot be set"),
        (HEAD + "{{ a|_output('') }}", "line 4: No filter named '_output'."),
        (HEAD + "{{ _write }}", "line 4: a name must begin with a letter"),
        (HEAD + "a\n\x00", "line 5: contains a control character"),
    ],
)
def test_e5_the_error_for_an_invalid_template_has_the_line_and_the_reason(
    tmp_path: Path, content: str, reason: str
) -> None:
    put(tmp_path, "email/x.md", content)

    with pytest.raises(InvalidTemplateError) as caught:
        TemplateLoader(tmp_path).get("email/x.md", "email")

    assert str(caught.value).startswith(f"email/x.md {reason}")


def test_e5_a_file_that_is_not_text_or_too_large_is_rejected(tmp_path: Path) -> None:
    put(tmp_path, "email/x.md", "").write_bytes(b"a\n\xff")
    put(tmp_path, "email/y.md", "x" * 300_000)

    with pytest.raises(InvalidTemplateError, match=r"x.md line 2: is not valid UTF-8"):
        TemplateLoader(tmp_path).get("email/x.md", "email")
    with pytest.raises(InvalidTemplateError, match=r"y.md: is larger than 65536 bytes"):
        TemplateLoader(tmp_path).get("email/y.md", "email")


def test_e5_windows_line_endings_are_accepted(tmp_path: Path) -> None:
    put(tmp_path, "email/x.md", HEAD.replace("\n", "\r\n") + "a\r\n{{ a }}")

    template = TemplateLoader(tmp_path).get("email/x.md", "email")

    assert template.compiled.required == {"a": 5}


# PyYAML raises many kinds of errors.
@pytest.mark.parametrize(
    "value",
    [
        "2026-99-99",
        "!!int x",
        "!!bool x",
        "!!timestamp x",
        "9" * 5000,
        "\x80",
        "\ufffe",
        "[" * 9000,
    ],
)
def test_e5_front_matter_with_an_invalid_value_is_rejected(value: str) -> None:
    with pytest.raises(InvalidTemplateError, match="is not valid YAML"):
        parse_template("email/x.md", f"---\nkind: {value}\n---\nHello")


def render(folder: Path, name: str, **options: str) -> Rendered:
    template = TemplateLoader(folder, **options).get(name, "email")
    return BoundTemplate(template, "email", {}, "Shop").render({}, unsubscribe_url=None)


def test_finding_c17_the_frame_can_be_replaced(tmp_path: Path) -> None:
    put(tmp_path, "email/x.md", "---\nsubject: A & B\n---\nHi *you*")
    put(
        tmp_path,
        "frame.html",
        "<html lang={{ language }}><title>{{ subject }}</title>{{ content }}{{ product }}"
        "{% for line in postal_address %}<i>{{ line }}</i>{% endfor %}</html>",
    )

    message = render(tmp_path, "email/x.md", postal_address="Shop <Ltd>\n1 Lane")

    assert message.html == (
        '<html lang="en"><head><title>A &amp; B</title></head><body><p>Hi <em>you</em></p>Shop'
        "<i>Shop &lt;Ltd&gt;</i><i>1 Lane</i></body></html>"
    )
    assert message.text == "Hi you\n\n---\nShop <Ltd>\n1 Lane\n"


def test_finding_c17_each_element_of_a_shipped_email_has_its_style(tmp_path: Path) -> None:
    put(
        tmp_path,
        "email/x.md",
        "---\nsubject: X\n---\nHi\n\n# 1\n\n## 2\n\n### 3\n\n"
        "[a](https://a.example) ![b](https://b.example)\n\n[button](https://c.example)\n\n"
        "- 1\n\n1. 1\n\n> `2`\n\n---\n\n    3\n",
    )

    html = render(tmp_path, "email/x.md", postal_address="1 Lane").html or ""

    body = ParsedHtml(html.partition("</head>")[2]).elements
    assert {tag for tag, _ in body} >= {"h1", "h2", "h3", "a", "img", "ul", "ol", "li", "hr", "pre"}
    assert {tag for tag, attributes in body if "style" not in attributes} == {"br"}
    # A declaration of an attribute has priority over one in <style> that is not important.
    media = html.partition("@media")[2].partition("</style>")[0]
    declarations = re.findall(r"[a-z-]+: [^;{}()]+(?=[;}])", media)
    assert len(declarations) == 12
    assert all("!important" in declaration for declaration in declarations)


def test_finding_c17_styles_of_a_replaced_frame_become_attributes(tmp_path: Path) -> None:
    put(tmp_path, "email/x.md", "---\nsubject: X\n---\n[you]({{ url }}) and [me]({{ url }})")
    put(tmp_path, "theirs.css", "p { margin: 9px }")
    put(
        tmp_path,
        "frame.html",
        f"<link rel=stylesheet href='{tmp_path}/theirs.css'>"
        "<style>a { color: red } a:hover { color: blue } "
        "@media print { a { color: black } }</style>{{ content }}",
    )
    template = TemplateLoader(tmp_path).get("email/x.md", "email")
    bound = BoundTemplate(template, "email", {"url": "https://a.example/?b=1&c=\"'<"}, "Shop")

    html = bound.render({}, unsubscribe_url=None).html or ""

    head, _, body = html.partition("<body>")
    url = "https://a.example/?b=1&amp;c=%22&#x27;%3C"
    assert body.strip() == (
        f'<p><a href="{url}" style="color:red">you</a> and '
        f'<a href="{url}" style="color:red">me</a></p></body></html>'
    )
    assert "color: red" not in head
    assert "a:hover { color: blue; }" in head
    assert "@media print { a { color: black } }" in head


def test_finding_c17_a_changed_frame_is_read_again(tmp_path: Path) -> None:
    put(tmp_path, "email/x.md", "---\nsubject: X\n---\nHi")
    loader = TemplateLoader(tmp_path)
    shipped = loader.get("email/x.md", "email").frame
    file = put(tmp_path, "frame.html", "<b>{{ content }}</b>")
    own = loader.get("email/x.md", "email").frame
    put(tmp_path, "frame.html", "<i>{{ content }}</i> changed")
    changed = loader.get("email/x.md", "email").frame
    file.unlink()

    assert len({shipped, own, changed}) == 3
    assert loader.get("email/x.md", "email").frame is shipped


def test_finding_c17_an_email_has_a_language_and_a_postal_address(tmp_path: Path) -> None:
    put(tmp_path, "email/x.md", "---\nsubject: X\n---\nHi")
    put(tmp_path, "email/y.md", "---\nsubject: X\nlanguage: pt-BR\n---\nHi")

    german = render(tmp_path, "email/x.md", language="de", postal_address="1 Lane")
    portuguese = render(tmp_path, "email/y.md", language="de")

    assert german.html is not None
    assert '<html lang="de" ' in german.html
    assert "<br>1 Lane" in german.html
    assert portuguese.html is not None
    assert '<html lang="pt-BR" ' in portuguese.html
    assert "---" not in portuguese.text


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ("<p>{{ subject }}</p>", r"frame.html line 1: does not contain \{\{ content \}\}"),
        ("{{ content }}{{ name }}", "frame.html line 1: unknown variable name; available: content"),
        ("{{ content }}\n{% if %}", "frame.html line 2: "),
        ("{{ content }}{{ postal_address.x }}", "frame.html line 1: cannot be rendered"),
        ("{{ content }}" + "x" * 70_000, "frame.html: is larger than 65536 bytes"),
    ],
)
def test_finding_c17_an_invalid_frame_is_named(tmp_path: Path, frame: str, reason: str) -> None:
    put(tmp_path, "email/x.md", "---\nsubject: X\n---\nHi")
    put(tmp_path, "frame.html", frame)

    with pytest.raises(InvalidTemplateError, match=reason):
        TemplateLoader(tmp_path).get("email/x.md", "email")
    assert TemplateLoader(tmp_path).get("sms/phone_confirmation.md", "sms")


@pytest.mark.parametrize("language", ["7", "'d e'", "[de]", "'de\"'"])
def test_finding_c17_an_invalid_language_is_named(tmp_path: Path, language: str) -> None:
    put(tmp_path, "email/x.md", f"---\nsubject: X\nlanguage: {language}\n---\nHi")

    with pytest.raises(InvalidTemplateError, match=r"line 3: language must be a tag such as de"):
        TemplateLoader(tmp_path).get("email/x.md", "email")
