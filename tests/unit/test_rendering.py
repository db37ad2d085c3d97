"""E5: one template and the context of one posting, for many recipients."""

import gc
import weakref
from typing import Any

import pytest

from services.mailings.rendering import shape
from services.mailings.rendering.bound_template import RenderingError
from services.mailings.rendering.loader import InvalidTemplateError
from services.mailings.rendering.markdown import Document, parse_markdown
from tests.fakes.rendering import ParsedHtml, bind, rendered

HOSTILE = "Salt & Pepper <Director's Cut> **x** [a](javascript:alert(1)) <script>"
EXPRESSIONS = ["user.x", "x", "x|trim", "user.x ~ ''"]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_e5_values_are_never_parsed_as_markdown_or_html(expression: str) -> None:
    message = rendered(
        f"# {{{{ {expression} }}}}\n\n- *{{{{ {expression} }}}}*", {"x": HOSTILE}, x=HOSTILE
    )

    assert message.html is not None
    shown = ParsedHtml(message.html)
    assert shown.text.count(HOSTILE) == 2
    assert {"script", "strong"} & {tag for tag, _ in shown.elements} == set()
    assert shown.links == []
    assert message.text == f"{HOSTILE}\n\n- {HOSTILE}\n"


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize(
    ("value", "link"),
    [
        ("https://a.example/b?c=1&d='2'", "https://a.example/b?c=1&d='2'"),
        ("mailto:a@b.example", "mailto:a@b.example"),
        ('http://a.example/"><b>', "http://a.example/%22%3E%3Cb%3E"),
        ("https://a.example/ü", "https://a.example/%C3%BC"),
        ("javascript:alert(1)", None),
        (" javascript:alert(1)", None),
        ("data:text/html,x", None),
        ("//a.example", None),
        ("/x", None),
        ("", None),
    ],
)
def test_e5_a_value_used_as_a_link_must_be_an_absolute_url(
    expression: str, value: str, link: str | None
) -> None:
    message = rendered(f"See **[this]({{{{ {expression} }}}})** now", {"x": value}, x=value)

    assert message.html is not None
    assert ParsedHtml(message.html).links == ([link] if link else [])
    assert "<strong>" in message.html
    assert ("</a>" in message.html) == (link is not None)
    assert message.text == (f"See this <{link}> now\n" if link else "See this now\n")


def test_e5_a_value_within_a_url_is_percent_encoded() -> None:
    body = "[a](https://a.example/{{ user.x }}/{{ x }}?q={{ user.x }}) ![b]({{ x }})"

    message = rendered(body, {"x": "../?&#/@"}, x="é\" onerror='")

    part = "..%2F%3F%26%23%2F%40"
    assert message.html is not None
    assert ParsedHtml(message.html).links == [
        f"https://a.example/{part}/%C3%A9%22%20onerror%3D%27?q={part}"
    ]
    assert "<img" not in message.html


def test_e5_the_text_part_is_readable() -> None:
    body = (
        "# Hello {{ user.name }}\n\nOne\nline, *and* `code`.\\\nNext.\n\n1. [Here]({{ site }})\n"
        "2. b\n   - c\n\n> Quoted\n\n***\n\n    x = 1\n\n<https://b.example>"
    )

    message = rendered(
        body, {"name": "*Ann*"}, url="https://u.example/7?a=1&b=2", site="https://a.b"
    )

    assert message.text == (
        "Hello *Ann*\n\nOne line, and code.\nNext.\n\n1. Here <https://a.b>\n2. b\n   - c\n\n"
        "> Quoted\n\n---\n\n    x = 1\n\nhttps://b.example\n\n---\n"
        "Unsubscribe <https://u.example/7?a=1&b=2>\n"
    )


@pytest.mark.parametrize(
    ("body", "links"),
    [("Hi", 1), ("Hi {% if unsubscribe_url %}[off]({{ unsubscribe_url }}){% endif %}", 2)],
)
def test_e5_an_unsubscribe_url_adds_a_link(body: str, links: int) -> None:
    bound = bind(body)

    with_url = bound.render({}, unsubscribe_url="https://u.example/?a=1&b=2")
    without = bound.render({}, unsubscribe_url=None)

    assert with_url.html is not None
    assert without.html is not None
    assert ParsedHtml(with_url.html).links == ["https://u.example/?a=1&b=2"] * links
    assert ParsedHtml(without.html).links == []
    assert "Unsubscribe" not in without.html + without.text


def test_e5_a_paragraph_with_only_a_link_becomes_a_button() -> None:
    html = rendered("[Go]({{ x }})\n\nOr [this]({{ x }}).", x="https://a.example").html or ""

    assert html.count('<a class="button" href="https://a.example" style="color:#fff;') == 1
    assert html.count("<a ") == 2


@pytest.mark.parametrize(
    ("subject", "name", "expected"),
    [
        ("Hi {{ user.name }}", "Ann\r\nBcc: all@b.example", "Hi Ann Bcc: all@b.example"),
        (" \n {{ user.name }}\n", "  <b> & *c*\t", "<b> & *c*"),
        ("{{ user.name }}", "é" * 2_000, "é" * 998),
        ("{{ user.name }}", "a\x00b\ud800", "a\ufffdb\ufffd"),
    ],
)
def test_e5_the_subject_is_one_line(subject: str, name: str, expected: str) -> None:
    assert rendered("x", {"name": name}, subject=subject).subject == expected


def test_e5_an_sms_is_plain_text() -> None:
    message = rendered(
        "\n  {{ user.name }}, your  code:\n\n\n {{ code }} *\n",
        {"name": "*Ann*"},
        channel="sms",
        name="sms/x.md",
        code="<1234>",
    )

    assert message == ("", "*Ann*, your code:\n<1234> *", None)


def test_e5_an_email_template_renders_to_a_readable_sms() -> None:
    message = rendered("# Hi\n\nSee [this]({{ x }}).", channel="sms", x="https://a.example")

    assert message == ("", "Hi\nSee this <https://a.example>.", None)


@pytest.mark.parametrize(
    ("body", "context", "reason"),
    [
        ("a\n{{ code }}", {}, "line 5: code is missing in the context"),
        ("{{ a }}", {"a": None}, "line 4: a is null; use |default(…)"),
        ("\n\n{{ a.b }}", {"a": {}}, "line 6: a.b is missing"),
        (
            "\n{% for m in a %}\n{{ m.t }}\n{% endfor %}",
            {"a": [{"t": 1}, {}]},
            "line 6: m.t is mis",
        ),
        ("{{ a }}", {"a": [1]}, "line 4: a is a list or an object"),
        ("{{ a|length }}", {"a": 5}, "line 4: object of type 'int' has no len()"),
        ("{{ 'a' * 1000000000 }}", {}, "line 4: * is for numbers only"),
        ("{{ a + a }}", {"a": "x"}, "line 4: + is for numbers only"),
        ("{% if user.vip %}\n{{ a.b }}{% endif %}", {"a": {}}, "line 5: a.b is missing"),
        ("{% if not user.vip %}\n{{ a.b }}{% endif %}", {"a": {}}, "line 5: a.b is missing"),
        ("{% for i in range(99999) %}xxxx{% endfor %}", {}, "x.md: the message is longer than"),
        (
            "{% for i in range(99999) %}\n{% for j in range(99999) %}{% endfor %}{% endfor %}",
            {},
            "line 5: takes longer than 0.5 s",
        ),
        (
            "{% set b = a %}" + "{% set b = b ~ b %}" * 40,
            {"a": "x" * 99},
            "line 4: a text would be",
        ),
        ("{{ a }}", {"a": 1, "user": 2}, "user cannot be set in the context"),
    ],
)
def test_e5_an_error_for_every_recipient_is_found_before_anything_is_sent(
    body: str, context: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidTemplateError) as caught:
        bind(body, **context)

    text = str(caught.value)
    assert reason in text
    assert text.startswith("email/x.md")


@pytest.mark.parametrize(
    ("body", "user", "reason"),
    [
        ("a\n{{ user.name }}", {}, "line 5: user.name is missing"),
        ("a\n{{ user.name }}", {"name": None}, "line 5: user.name is null"),
        ("a\n{{ user.name.first }}", {}, "line 5: the field 'name' does not exist"),
        (
            "{% for i in [1] %}\n{% if i > user.age %}{% endif %}{% endfor %}",
            {"age": "x"},
            "line 5",
        ),
        ("{% if user.vip %}x{% endif %}", {}, "line 4: the field 'vip' does not exist"),
        ("{{ 1 / user.zero }}", {"zero": 0}, "line 4: division by zero"),
        ("{{ user.long }}", {"long": "x" * 300_000}, "the message is longer than 262144 char"),
    ],
)
def test_e5_an_error_for_one_recipient_does_not_affect_the_others(
    body: str, user: dict[str, Any], reason: str
) -> None:
    bound = bind(body)

    with pytest.raises(RenderingError) as caught:
        bound.render(user, unsubscribe_url=None)
    assert reason in str(caught.value)
    valid = {"name": {"first": "A"}, "age": 0, "vip": True, "zero": 1, "long": "x"}
    if "{{ user.name }}" in body:
        valid["name"] = "A"
    assert bound.render(valid, unsubscribe_url=None).html


@pytest.mark.parametrize(
    ("text", "reason"), [(" \n", "is empty"), ("x" * 1_601, "1600 characters")]
)
def test_e5_an_sms_has_size_limits(text: str, reason: str) -> None:
    with pytest.raises(RenderingError, match=reason):
        rendered("{{ user.x }}", {"x": text}, channel="sms", name="sms/x.md")


def test_e5_errors_contain_no_values() -> None:
    with pytest.raises(RenderingError) as caught:
        rendered("{{ user.name[user.code].x }}", {"code": "s3cret", "name": {}})

    assert "s3cret" not in str(caught.value)


def test_e5_default_replaces_null_and_missing_values() -> None:
    bound = bind("{{ user.name|default('there') }} {{ x|default('y') }}")

    for user in ({}, {"name": None}):
        assert bound.render(user, unsubscribe_url=None).text == "there y\n"


def test_e5_recipients_with_many_shapes_each_get_their_own_message() -> None:
    bound = bind("{% for g in user.genres %}- {{ g }} {{ user.name }}\n{% endfor %}")
    users = [{"name": f"n{n}", "genres": [f"g{n}"] * (n % 3)} for n in range(200)]

    for user in users * 2:
        lines = [f"- {genre} {user['name']}" for genre in user["genres"]]
        assert bound.render(user, unsubscribe_url=None).text.split("\n")[:-1] == (lines or [""])


def test_e5_equal_values_of_different_types_are_rendered_differently() -> None:
    bound = bind("{% set x = user.x %}{{ x }} {{ 'text' if x is string else 'other' }}")

    message = [
        bound.render({"x": x}, unsubscribe_url=None).text for x in (1, True, 1.0, "1", "true")
    ]

    assert message == ["1 other\n", "true other\n", "1.0 other\n", "1 text\n", "true text\n"]


def test_a_variable_can_be_set_from_the_recipient() -> None:
    bound = bind(
        "{% set link = unsubscribe_url %}{% with name = user.name %}"
        "{{ name }}: {{ link }}{% endwith %}"
    )

    message = bound.render({"name": "Ann"}, unsubscribe_url="https://a.example")

    assert message.text.startswith("Ann: https://a.example\n")


def test_e5_markdown_is_converted_once_for_recipients_with_the_same_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    converted = []

    def convert(markdown: str) -> Document:
        converted.append(markdown)
        return parse_markdown(markdown)

    monkeypatch.setattr(shape, "parse_markdown", convert)
    bound = bind("Hello {{ user.name }}{% if user.vip %}, VIP{% endif %}")

    for number in range(10):
        bound.render({"name": f"Ann {number}", "vip": number > 5}, unsubscribe_url=None)

    assert len(converted) == 2


def test_e5_a_template_frees_its_context_and_shapes_without_a_garbage_collection() -> None:
    bound = bind("{{ x }} {{ user.name }}", x="large")
    bound.render({"name": "Bob"}, unsubscribe_url=None)
    reference = weakref.ref(bound)
    gc.disable()
    try:
        del bound
        assert reference() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["_output", "no_such_filter"])
def test_e5_map_cannot_call_internal_filters_and_its_error_does_not_quote_the_name(
    name: str,
) -> None:
    with pytest.raises(InvalidTemplateError, match="the filter does not exist") as caught:
        bind('{{ ["a"]|map(x, "b")|first }}', x=name)
    assert name not in str(caught.value)
