"""Rules: the commands that follow from an event, by configuration alone."""

import json
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.ingestion.domain import (
    Decision,
    EventOutcome,
    ReceivedEvent,
    RuleError,
    UnknownEventError,
    content_id,
    decide,
)
from services.ingestion.expressions import EVALUATION_TIMEOUT
from services.ingestion.rules import InvalidRulesError, load, load_by_name, parse
from shared.contracts.events import Event
from shared.contracts.postings import Posting
from tests.fakes.ingesting import KNOWN_EVENTS

NOW = datetime(2026, 11, 20, 15, 0, tzinfo=UTC).timestamp()
RULE = '[r]\nfrom_service = "s"\nevent = "e"\n'


def received(details: dict[str, Any] | None = None, **fields: Any) -> ReceivedEvent:
    at = fields.pop("at", None)
    event = Event(from_service="s", event="e", details=details or {}, **fields)
    return ReceivedEvent(event, event.event_id or content_id(event), at)


def decided(text: str, event: ReceivedEvent, now: float = NOW) -> Decision:
    rules = parse(text, "rules.toml")
    return decide({("s", "e"): rules}, event, now=now)


def bodies(text: str, details: dict[str, Any], **fields: Any) -> list[Any]:
    decision = decided(text, received(details, **fields))
    return [json.loads(command.body) for command in decision.commands]


def value(expression: str, details: dict[str, Any]) -> Any:
    """Evaluate an expression in a rule and return its value."""
    text = f"{RULE}[[r.user_event]]\nuser_id = 7\ntype = 't'\nevent = {{ value = {expression!r} }}"
    return bodies(text, details)[0]["event"]["value"]


def faults(text: str) -> list[str]:
    with pytest.raises(InvalidRulesError) as caught:
        parse(text, "rules.toml")
    assert all(fault.startswith("rules.toml: ") for fault in caught.value.faults)
    return [fault.removeprefix("rules.toml: ") for fault in caught.value.faults]


@pytest.mark.parametrize("known", KNOWN_EVENTS, ids=lambda event: event["event"])
def test_e1_e2_shipped_rules_create_a_posting_for_every_known_event(known: dict[str, Any]) -> None:
    event = Event(**known)

    decision = decide(load(), ReceivedEvent(event, "id-1", NOW), now=NOW)

    (command,) = decision.commands
    posting = Posting.model_validate_json(command.body)
    assert posting.from_event == "id-1"
    if event.event == "user_signed_up":
        assert posting.template == "email/welcome.md"
        assert posting.receivers == event.details["user"]
        assert posting.template_context == {"username": "user@mail.com"}
    else:
        assert posting.template == f"email/{event.event}.md"
        assert posting.template_context == event.details


def test_e1_a_new_event_only_needs_configuration() -> None:
    text = """
[paid]
from_service = "s"
event = "e"
when = "details.total >= 100 and details.country in ['DE', 'AT']"
[[paid.posting]]
receivers = "http://auth/users/?group={{ details.group|urlencode }}"
template = "email/paid.md"
delivery_type = ["email", "sms"]
template_context = { total = "{{ details.total }}", line = "{{ details.total }} EUR" }
[[paid.schedule]]
delay = 3600
url = "https://shop.example.com/remind"
context = { order = "{{ details.order }}", at = "{{ occurred_at }}" }
[[paid.callback]]
target_url = "{{ details.hook }}"
secret_ref = "shop"
payload = { event = "{{ event }}", details = "{{ details }}" }
[[paid.user_event]]
user_id = "{{ details.user|string }}"
type = "paid"
event = { total = "{{ details.total }}" }
"""
    details = {
        "total": 100,
        "country": "DE",
        "group": "a b",
        "order": [1, {"x": None}],
        "hook": "https://shop.example.com/h",
        "user": 7,
    }
    posting, schedule, callback, user_event = bodies(text, details, at=NOW)

    assert posting["receivers"] == "http://auth/users/?group=a%20b"
    assert posting["template_context"] == {"total": 100, "line": "100 EUR"}
    assert schedule["context"] == {"order": [1, {"x": None}], "at": "2026-11-20T15:00:00.000Z"}
    assert callback["payload"] == {"event": "e", "details": details}
    assert user_event == {"user_id": "7", "type": "paid", "event": {"total": 100}}
    assert decided(text, received(details | {"total": 99})) == Decision(EventOutcome.SKIPPED)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("{{ details.n }}", 7),
        ("{{ details['n'] + 1 }}", 8),
        ("n={{ details.n }} {{ details.yes }}", "n=7 true"),
        ("{{ details.text }}", "1234"),
        ("{{ details.none }}", None),
        ("{{ details.items }}", ["a", "b"]),
        ("{{ details.items[0] ~ details.text }}", "a1234"),
        ("{{ details.items|map('upper')|join('+') }}", "A+B"),
        ("{{ details.people|map(attribute='name')|list }}", ["Ann", "Bo"]),
        ("{{ details.missing|default('-') }}", "-"),
        ("{{ 'x' if details.n > 3 else 'y' }}", "x"),
        ("plain", "plain"),
    ],
)
def test_e2_values_keep_their_types(expression: str, expected: Any) -> None:
    details = {
        "n": 7,
        "yes": True,
        "text": "1234",
        "none": None,
        "items": ["a", "b"],
        "people": [{"name": "Ann"}, {"name": "Bo"}],
    }
    assert value(expression, details) == expected


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("{{ details.missing }}", "event.value: the field 'missing' does not exist"),
        ("x{{ details.missing }}", "the field 'missing' does not exist"),
        ("{{ details.missing.deeper }}", "the field 'missing' does not exist"),
        ("x{{ details.none }}", "null, a list or an object cannot be part of a text"),
        ("{{ 1 / details.zero }}", "division by zero"),
        ("{{ details.text.__class__ }}", "the field '__class__' does not exist"),
        ("{{ details.text['upper'] }}", "the field 'upper' does not exist"),
        ("{{ details.text * 1000000000 }}", "* is for numbers only"),
        ("{{ '%1000000000d' % 1 }}", "% is for numbers only"),
    ],
)
def test_e2_a_missing_value_fails_the_event_and_names_rule_and_field(
    expression: str, reason: str
) -> None:
    with pytest.raises(RuleError) as caught:
        value(expression, {"none": None, "zero": 0, "text": "x"})
    assert str(caught.value).startswith("rule r, user_event.0")
    assert reason in str(caught.value)


def test_e2_a_slow_expression_times_out() -> None:
    numbers = list(range(20_000))
    expression = "{{ details.a|select('in', details.b)|list|length }}"
    with pytest.raises(RuleError, match=f"takes longer than {EVALUATION_TIMEOUT:g} s"):
        value(expression, {"a": numbers, "b": [-1] * 20_000})
    assert value("{{ details.n }}", {"n": 1}) == 1  # the time limit has ended


def test_e2_a_too_long_text_is_rejected() -> None:
    with pytest.raises(RuleError, match="longer than 1048576 characters"):
        value("{{ details.a|join(details.b) }}", {"a": [1] * 2000, "b": "x" * 1000})


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("template = '{{ details.t }}'", "template: String should match"),
        ("template = 'a.md'\nexpires_in = '{{ details.t }}'", "expires_in: must be a whole number"),
    ],
)
def test_e2_a_command_that_violates_its_contract_is_rejected(command: str, reason: str) -> None:
    text = f"{RULE}[[r.posting]]\nreceivers = 'http://auth/u'\ndelivery_type = ['sms']\n{command}"
    with pytest.raises(RuleError) as caught:
        bodies(text, {"t": "../x"})
    assert str(caught.value).startswith(f"rule r, posting.0: {reason}")


def test_e1_an_event_without_a_rule_is_unknown() -> None:
    event = Event(from_service="auth", event="user_left", details={})
    with pytest.raises(UnknownEventError, match="no rule matches the event 'user_left' of 'auth'"):
        decide(load(), ReceivedEvent(event, "1", None), now=NOW)


def test_e3_an_expired_event_is_stale() -> None:
    end = datetime.fromtimestamp(NOW, UTC)
    assert decided(RULE, received(expires_at=end), NOW - 0.001).outcome is EventOutcome.ACCEPTED
    assert decided(RULE, received(expires_at=end), NOW).outcome is EventOutcome.STALE


def test_e3_an_event_older_than_max_age_is_stale_for_that_rule() -> None:
    user_event = "[[{0}.user_event]]\nuser_id = 7\ntype = '{0}'\nevent = {{}}\n"
    recent_only = RULE + "max_age = '60 sec'\n" + user_event.format("r")
    any_age = RULE.replace("[r]", "[any]") + user_event.format("any")

    def kinds(text: str, at: float | None) -> list[str]:
        decision = decided(text, received(at=at))
        return [json.loads(command.body)["type"] for command in decision.commands]

    assert kinds(recent_only + any_age, NOW - 60) == ["r", "any"]
    assert kinds(recent_only + any_age, NOW - 60.1) == ["any"]
    assert kinds(recent_only, None) == ["r"]  # the time of the event is unknown
    assert decided(recent_only, received(at=NOW - 61)) == Decision(EventOutcome.STALE)


def test_e3_ids_of_keys_and_commands_are_stable_and_unique() -> None:
    text = RULE + "[[r.user_event]]\nuser_id = 7\ntype = 't'\nevent = {}\n" * 2
    ids = [command.id for command in decided(text, received(event_id="1")).commands]
    assert len(set(ids)) == 2
    assert ids == [command.id for command in decided(text, received(event_id="1")).commands]
    assert not set(ids) & {c.id for c in decided(text, received(event_id="2")).commands}
    assert received({"a": 1, "b": 2}).key == received({"b": 2, "a": 1}).key
    assert received({"a": 1}).key != received({"a": 2}).key
    other = Event(from_service="s2", event="e", details={}, event_id="1")
    assert ReceivedEvent(other, "1", None).key != received(event_id="1").key


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1", ["x: must be a table: [x]"]),
        ("[a b]", ["Expected ']' at the end of a table declaration (at line 1, column 4)"]),
        ('["a b"]\nfrom_service = "s"\nevent = "e"', ["a b: a rule's name may contain"]),
        ("[r]", ["r.from_service: Field required", "r.event: Field required"]),
        (RULE + "evnt = 1", ["r.evnt: Extra inputs are not permitted"]),
        (RULE + "when = 'details.('", ["r.when: expected name or number"]),
        (RULE + "when = 'a) }}{{ (b'", ["r.when: "]),
        (RULE + "when = 'detials.x'", ["r.when: unknown variable detials; use details, "]),
        (RULE + "when = 'details.x()'", ["r.when: calls are not allowed"]),
        (RULE + "when = 'details.x|attr(1)'", ["r.when: No filter named 'attr'"]),
        (RULE + "when = '2 ** 99 > 1'", ["r.when: powers are not allowed"]),
        (RULE + "max_age = 'soon'", ["r.max_age: must be a whole number above 0"]),
        (RULE + "posting = 1", ["r.posting: Input should be a valid list"]),
        (
            RULE + "[[r.posting]]\ntemplate = '../x.md'\ncolour = 'red'\ndelivery_type = ['fax']\n"
            "template_context = { a = '{% for b in c %}{% endfor %}', d = ['{{ e }}'], "
            "f = 2026-11-20 }",
            [
                "r.posting.0.template_context.a: unknown variable c;",
                "r.posting.0.template_context.d.0: unknown variable e;",
                "r.posting.0.template_context.f: a date must be a text",
                "r.posting.0.receivers: Field required",
                "r.posting.0.template: String should match",
                "r.posting.0.delivery_type.0: Input should be ",
                "r.posting.0.colour: Extra inputs are not permitted",
            ],
        ),
        (
            RULE + "[[r.callback]]\ntarget_url = '{{ details.u }}'\nhmac_secret = 's'\npayload = 1",
            ["r.callback.0.hmac_secret: use secret_ref instead"],
        ),
        (
            RULE + "[[r.callback]]\ntarget_url = 'https://a.example'\npayload = 1",
            ["r.callback.0: set either hmac_secret or secret_ref"],
        ),
    ],
)
def test_e2_every_fault_of_a_rules_file_is_named_with_its_key(
    text: str, expected: list[str]
) -> None:
    found = faults(text)
    assert len(found) == len(expected), found
    for fault, beginning in zip(found, expected, strict=True):
        assert fault.startswith(beginning), fault


def test_e2_a_rule_with_the_name_of_a_shipped_rule_replaces_it(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('[welcome]\nfrom_service = "auth"\nevent = "user_signed_up"\n')
    assert [r.name for r in load_by_name(file).values() if r.source == str(file)] == ["welcome"]
    event = Event(**KNOWN_EVENTS[0])
    decision = decide(load(file), ReceivedEvent(event, "1", NOW), now=NOW)
    assert decision == Decision(EventOutcome.ACCEPTED, ())
    with pytest.raises(InvalidRulesError, match=r"nothing\.toml: No such file"):
        load(tmp_path / "nothing.toml")


def test_the_rules_in_the_docs_are_valid() -> None:
    text = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
    examples = [part.split("```")[0] for part in text.split("```toml\n")[1:]]
    assert examples
    for example in examples:
        assert parse(example, "docs")
        assert tomllib.loads(example)


MANAGER: dict[str, Any] = {
    "receivers": "https://auth/api/v1/users/?group=editors",
    "template": "email/new_movies.md",
    "delivery_type": ["email", "sms"],
}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {
            "template_context": {"movies": "https://fastapi/api/v1/movies/?new=True"},
            "expires_in": "1 day",
            "priority": "urgent",
        },
    ],
)
def test_e2_and_finding_c6_a_managers_posting_becomes_that_posting(more: dict[str, Any]) -> None:
    event = Event(from_service="admin", event="posting_created", details=MANAGER | more)
    (command,) = decide(load(), ReceivedEvent(event, "id-1", NOW), now=NOW).commands
    created = Posting.model_validate_json(command.body)
    assert created == Posting(**MANAGER, from_event="id-1", **more)


def test_finding_c6_a_summary_of_reactions_goes_to_the_review_that_leads_to_its_author() -> None:
    (known,) = [event for event in KNOWN_EVENTS if event["event"] == "reactions_summary"]
    (command,) = decide(load(), ReceivedEvent(Event(**known), "id-1", NOW), now=NOW).commands
    created = Posting.model_validate_json(command.body)
    assert created.receivers == known["details"]["stats"][0]["target"]
