"""C10: templates that would take much memory or time end with an error that names the cause."""

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from services.ingestion.expressions import ExpressionFailedError, compile_condition
from services.mailings.rendering import bound_template
from services.mailings.rendering.bound_template import RenderingError
from services.mailings.rendering.loader import InvalidTemplateError
from shared.templating.time_limit import TimeLimit, TimeLimitExceededError
from tests.fakes.rendering import bind

# Bytes by which the memory of the process may grow. Its limit for created values is 32 MiB.
MAX_GROWTH: Final = 50 << 20
# Seconds of CPU time: three runs of at most 0.5 s each, parsing, and a lot of room.
MAX_SECONDS: Final = 6.0
WORD: Final = "x" * 1_000
# Lists that contain themselves often: 2 ** 60 parts in a few lists.
NESTED: Final = "{% set a = [x] %}" + "{% set a = [a, a] %}" * 60
TWICE: Final = NESTED + NESTED.replace("set a", "set b").replace("[a, a]", "[b, b]")
# A text of 512,000 characters, then many of them.
LONG: Final = "{% set a = word %}" + "{% set a = a ~ a %}" * 9


def many(value: str, count: int = 900) -> str:
    """Return a template that keeps many values."""
    return "".join(f"{{% set v{number} = {value} %}}" for number in range(count))


BOMBS: Final = {
    "the sum of lists": "{% set a = [x] %}" + "{% set a = [a, a]|sum([]) %}" * 40,
    "the sum of texts": "{% set a = [word, word]|sum('') %}" * 20,
    "lists in lists": NESTED,
    "tuples in tuples": NESTED.replace("[", "(").replace("]", ")"),
    "objects in objects": NESTED.replace("[a, a]", "{'a': a, 'b': a}"),
    "comparing lists": TWICE + "{% if a == b %}{% endif %}",
    "finding a list": TWICE + "{% if a in [b] %}{% endif %}",
    "hashing a tuple": NESTED.replace("[", "(").replace("]", ")") + "{% set k = {a: 1} %}",
    "unique lists": TWICE + "{{ [a, b]|unique|list|length }}",
    "sorted lists": TWICE + "{{ [a, b]|sort|length }}",
    "lists by default": "{% set a = range(1000)|list %}"
    + "{% set a = range(1000)|map(attribute='x', default=a)|list %}" * 9,
    "many lists": many("range(100000)|list"),
    "many copies": "{% set a = range(100000)|list %}" + many("a[:]"),
    "many texts": LONG + many("a ~ a"),
    "many parts of texts": LONG + many("a[1:]"),
    "many upper-case texts": LONG + many("a|upper"),
    "many reversed texts": LONG + many("a|reverse"),
    "many numbers": many("range(100000)|map('string')|list"),
    "a repeated text": "{{ word * 1000000 }}",
    "a repeated list": "{% set a = [x] * 100000000 %}",
    "a text of a list": NESTED + "{{ a|string }}",
    "an upper-case list": NESTED + "{{ a|upper }}",
    "an encoded list": NESTED + "{{ [('a', a)]|urlencode }}",
    "a lower-case test": NESTED + "{{ 'y' if a is lower }}",
    "a formatted text": "{{ 'y' if '%999999999d' is divisibleby 3 }}",
    "a formatted odd text": "{{ 'y' if '%999999999d' is odd }}",
    "a formatted number": "{{ '%999999999d' % 3 }}",
    "selected formats": "{{ ['%999999999d']|select('even')|list|length }}",
    "encoded again": LONG + "{% set a = a ~ 'я' %}" + "{% set a = a|urlencode %}" * 40,
    "characters": LONG + "{{ (a ~ a)|list|length }}",
    "sorted characters": LONG + "{{ (a ~ a)|sort|length }}",
    "joined characters": LONG + "{{ (a ~ a)|join(',')|length }}",
    "joined texts": LONG + "{{ range(1000)|map(attribute='x', default=a)|join|length }}",
    "sorted texts": LONG + "{{ range(1000)|map(attribute='x', default=a)|sort|length }}",
    "a larger number": LONG.replace("word", "digits") + "{{ a|int(base=16) }}",
    "large products": "{% set a = 9 %}" + "{% set a = a * a %}" * 60,
    "powers": "{{ 9 ** 999999999 }}",
    "a large range": "{{ range(1000000000)|list|length }}",
    "many lengths": "".join(
        f"{{% for i{n} in range(100000)|map('string') %}}{{% if loop.length %}}" for n in range(18)
    )
    + "{% endif %}{% endfor %}" * 18,
    "loops in loops": "{% for i in [1] %}" * 25 + "{% endfor %}" * 25,
    "endless loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}"
    "{% endfor %}",
    "long output": "{% for i in range(100000) %}{{ word }}{% endfor %}",
    "much Markdown": "{% for i in range(80000) %}*a*{% endfor %}",
    "many items": "{% for i in range(60000) %}- a\n{% endfor %}",
    "deep quotes": "{% for i in range(900) %}> {% endfor %}\n" * 200,
    "many values": "{{ x }}" * 9_000,
    "many conditions": "{% if x %}a{% endif %}\n" * 2_500,
    "a long list": "{% set a = [" + "1," * 30_000 + "1] %}",
    "nested brackets": "{{ " + "(" * 3_000 + "x" + ")" * 3_000 + " }}",
    "nested objects": "{{ " + "{1:" * 3_000 + "x" + "}" * 3_000 + " }}",
    "long additions": "{{ " + "1+" * 3_000 + "1 }}",
    "long attributes": "{{ x" + ".b" * 30_000 + " }}",
    "long filters": "{{ x" + "|d" * 30_000 + " }}",
}


def growth(act: Callable[[], Any]) -> int:
    """Return by how many bytes an action makes the memory of this process grow at most."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before = _resident("VmRSS")
    act()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(name)


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS)
def test_finding_c10_a_bomb_ends_with_an_error(body: str) -> None:
    def render() -> None:
        with pytest.raises((InvalidTemplateError, RenderingError)) as raised:
            bind(body, x=1, word=WORD, digits="9" * 1_000).render({}, unsubscribe_url=None)
        errors.append(str(raised.value))

    errors: list[str] = []
    begin = time.process_time()
    assert growth(render) < MAX_GROWTH, errors
    assert time.process_time() - begin < MAX_SECONDS
    assert len(errors[0]) < 200
    assert "Error" not in errors[0]  # no name of a Python exception


@pytest.mark.parametrize(
    "condition",
    [
        "[x.a, x.a]|sum([])|length > 0",
        "'%999999999d' is even",
        "(x.a|join)|list|length > 0",
    ],
)
def test_finding_c10_a_bomb_in_a_rule_ends_with_an_error(condition: str) -> None:
    expression = compile_condition(condition, frozenset({"x"}))

    def evaluate() -> None:
        with pytest.raises(ExpressionFailedError):
            expression.evaluate({"x": {"a": ["я" * 4_000] * 200}})

    assert growth(evaluate) < MAX_GROWTH


@pytest.mark.parametrize("piece", ["*a*", "- a\n", "[a](b)", "> a\n\n", "`a` "])
def test_finding_c10_the_longest_markdown_takes_little_memory(
    piece: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its memory counts, however fast the machine is.
    monkeypatch.setattr(bound_template, "_TIME_LIMIT", TimeLimit(60))
    count = (bound_template.MAX_MARKDOWN_SIZE - 1) // len(piece)  # a line break follows
    bound = bind("{% for i in range(user.n) %}" + piece + "{% endfor %}")

    def render() -> None:
        with suppress(RenderingError):  # the HTML may be too large
            bound.render({"n": count}, unsubscribe_url=None)

    assert growth(render) < MAX_GROWTH


def test_finding_c10_a_time_limit_holds_although_its_first_exception_is_ignored() -> None:
    def work() -> None:
        while True:
            pass

    with pytest.raises(TimeLimitExceededError), TimeLimit(0.02):  # noqa: PT012 - the first work ends
        with suppress(TimeLimitExceededError):
            work()
        work()


def test_finding_c10_a_garbage_collection_is_not_charged_to_a_template() -> None:
    def collect(phase: str, _: object) -> None:
        end = time.process_time() + 0.05
        while phase == "start" and time.process_time() < end:
            pass

    gc.callbacks.append(collect)
    try:
        with TimeLimit(0.04):
            kept: list[list[object]] = [[] for _ in range(2 * gc.get_threshold()[0])]
    finally:
        gc.callbacks.remove(collect)

    assert kept
    assert gc.isenabled()


def test_finding_c10_the_memory_is_counted_for_each_message() -> None:
    bound = bind("{{ range(100000)|list|length }}")

    for _ in range(12):
        assert bound.render({}, unsubscribe_url=None).text == "100000\n"


def test_finding_c10_a_list_of_usual_size_can_be_copied_and_sorted() -> None:
    movies = [{"title": f"Movie {n}", "text": WORD, "rating": n % 10} for n in range(500)]

    message = bind(
        "{% set best = movies|sort(attribute='rating', reverse=true) %}"
        "{% for movie in best[:2] %}{{ movie.title|upper }} {% endfor %}",
        movies=movies,
    ).render({}, unsubscribe_url=None)

    assert message.text == "MOVIE 9 MOVIE 19 \n".replace(" \n", "\n")


def test_finding_c10_the_shapes_of_a_template_take_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bound_template, "_TIME_LIMIT", TimeLimit(60))
    body = "{% for i in range(500 + user.n) %}[{{ x }}]({{ x }}) {% endfor %}"
    bound = bind(body, x="https://a.example")

    def render() -> None:
        for number in range(40):
            bound.render({"n": number}, unsubscribe_url=None)

    assert growth(render) < MAX_GROWTH
