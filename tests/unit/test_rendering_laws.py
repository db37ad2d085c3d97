"""E5: properties of rendering for any value, any recipient and many templates."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.mailings.rendering.bound_template import BoundTemplate, RenderingError
from services.mailings.rendering.formats import Rendered
from services.mailings.rendering.placeholder import clean
from tests.fakes.rendering import ParsedHtml, bind

# The places of a value. Each is used with a value of the user, of the posting, and of both.
PLACES = """# {v}

*a {v}* `{v}` {v}_{v}_ [{v}](https://a.example/{v}?q={v} "{v}") <{v}>

{v}. {v}

- {v}
- [link]({v}) ![{v}](https://a.example/i)

> {v}

    {v}

```{v}
{v}
```
&{v}; [{v}]: {v}
"""
EXPRESSIONS = "{{ user.x }}", "{{ x }}", "{{ user.x ~ each }}"
TEMPLATE = (
    PLACES.replace("{v}", EXPRESSIONS[0])
    + PLACES.replace("{v}", EXPRESSIONS[1])
    + "{% for each in [''] %}\n"
    + PLACES.replace("{v}", EXPRESSIONS[2])
    + "{% endfor %}"
)
HOSTILE_TEXT = st.lists(
    st.sampled_from(("<script>", "</p>", "-->", "&amp;", "&#x3c;", "**", "_", "`", "[a](b)", "!["))
    | st.sampled_from(("{{", "x", "}}", "{%", "%", "%22", "m0v0e"))
    | st.sampled_from(("javascript:", "https://", "mailto:", '"', "'", " onerror=", "\\", "\n\n# "))
    | st.sampled_from(("\n- ", "\x00", "\x02", "\x03", "\x1f", "\ud800", "\u2028", "é", ">"))
    | st.text(max_size=3),
    max_size=6,
).map("".join)


@given(value=HOSTILE_TEXT)
def test_e5_a_value_never_changes_the_structure_of_a_message(value: str) -> None:
    harmless = "VALUE"
    one = bind(TEMPLATE, x=harmless).render({"x": harmless}, unsubscribe_url=None)
    two = bind(TEMPLATE, x=value).render({"x": value}, unsubscribe_url=None)
    expected, shown = ParsedHtml(one.html or ""), ParsedHtml(two.html or "")
    value = clean(value)

    # The three links that consist of a value are either all present or all absent.
    whole = [link for link in shown.links if not link.startswith("https://a.example/")]
    assert len(whole) in (0, 3)
    assert all(link.startswith(("http:", "https:", "mailto:")) for link in map(str.lower, whole))
    if not whole:
        assert shown.elements == expected.elements
        assert shown.titles == [each.replace(harmless, value) for each in expected.titles]
        for line in one.text.split("\n"):
            if "https://a.example/" not in line:
                assert line.replace(harmless, value) in two.text
    assert shown.text == expected.text.replace(harmless, value)


PIECES = (
    "Hello {{ user.name }}. ",
    "{{ user.name|default('there')|upper }} ",
    "**{{ user['name'] }}** and {{ user.tags|join(', ') }}\n\n",
    "{% if user.vip %}VIP {{ user.name }}{% else %}you{% endif %}\n",
    "{% if user.vip is defined and user.vip %}{{ user.deep.er }}{% endif %}",
    "{% for movie in movies %}\n- {{ movie.title }} for {{ user.name }}\n{% endfor %}\n",
    "{% for m in movies %}{% if m.title in user.tags %}{{ m.title }}{% endif %}{% endfor %}",
    "{% for tag in user.tags %}- {{ loop.index }} {{ tag }} {{ user.name }}\n{% endfor %}\n",
    "{% set name = user.name|default('x') %}{{ name }}{{ name|length }} ",
    "{{ movies|length if user.vip else user.tags|length }} ",
    "{% if user.tags|length > 1 or movies|length > 5 %}many{% elif user.vip == 1 %}1{% endif %}",
    "{% for m in movies if m.year > user.vip %}{{ m.year }}{% endfor %}",
    "[{{ user.name }}]({{ user.link }}) [b](https://b.example/{{ user.name }}) ",
    "{{ user.tags[0] }} {{ user.deep.er|default(movies[0].title) }} ",
    "{{ user.tags[1:]|reverse|list|join }}{{ movies[:user.vip]|length }} ",
    "{{ user|length }} {% for k, v in user|dictsort %}{{ k }}{% endfor %} ",
    "{% for m in movies %}{{ (user.vip ~ m.year) if m.year else user.nothing }} {% endfor %}",
)
MOVIES = [{"title": "a", "year": 1}, {"title": "*b*", "year": 2}]
SCALARS = st.sampled_from(
    [None, True, False, 0, 1, 1.0, "1", "", "Ann", "<b>", "https://a.example"]
)
USERS = st.fixed_dictionaries(
    {},
    optional={
        "name": SCALARS,
        "vip": SCALARS,
        "link": SCALARS,
        "tags": st.lists(st.sampled_from(["a", "*b*", 1]), max_size=3) | SCALARS,
        "deep": st.fixed_dictionaries({}, optional={"er": SCALARS}) | SCALARS,
    },
)


@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=5),
    users=st.lists(USERS, max_size=5),
)
def test_e5_recipients_that_share_shapes_get_the_same_messages_as_alone(
    pieces: list[str], users: list[dict[str, Any]]
) -> None:
    def bound() -> BoundTemplate:
        subject = "{{ user.name|default('x', true) }} S"
        return bind("".join(pieces), subject=subject, movies=MOVIES)

    def rendered(template: BoundTemplate, user: dict[str, Any]) -> Rendered | None:
        try:
            return template.render(user, unsubscribe_url=None)
        except RenderingError:
            return None

    shared = bound()

    assert [rendered(shared, user) for user in users] == [rendered(bound(), user) for user in users]
