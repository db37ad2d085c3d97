"""What a schedule may say: every wrong field is named at once, with a reason."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from shared.contracts.context import field_errors
from shared.contracts.schedules import CancelCallback, RescheduleCallback, ScheduleCallback

URL = "https://shop.example.com/hook"
DOCUMENTED = {
    "run_at": "2026-11-20T15:00:00Z",
    "url": URL,
    "group_key": "user-7",
    "event_key": "reminder-1",
    "context": {"any": "json"},
    "notify_scheme": {"transport": "http", "method": "POST", "format": "event"},
    "retry_params": {
        "quick_retries_count": 0,
        "strategy": "exponential",
        "base_delay": 60,
        "delay_growth_rate": 2,
    },
}


def order(**fields: Any) -> ScheduleCallback:
    return ScheduleCallback.model_validate_json(json.dumps({"url": URL} | fields))


def faults(model: type[BaseModel] = ScheduleCallback, **fields: Any) -> dict[str, str]:
    """Give what is wrong, by field."""
    body = fields if model is not ScheduleCallback else {"url": URL} | fields
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(body))
    return {each.field: each.message for each in field_errors(caught.value)}


def test_s1_the_documented_order_is_read() -> None:
    read = ScheduleCallback.model_validate_json(json.dumps(DOCUMENTED))
    assert (read.url, read.group_key, read.event_key) == (URL, "user-7", "reminder-1")
    assert read.retry.base_delay == 60


def test_s1_all_but_the_url_is_optional() -> None:
    with pytest.raises(ValidationError, match="url"):
        ScheduleCallback.model_validate_json('{"run_at": "2026-11-20T15:00:00Z"}')
    assert order().run_at is None


def test_every_wrong_field_is_named_at_once() -> None:
    found = faults(
        url="ftp://x",
        run_at="2026-11-20T15:00:00",
        group_key="a\x00b",
        context='{"retry_params": {"strategy": "exponential", "base_dealy": 1}}',
        notify_scheme={"method": "TRACE"},
        repeat={"cron": "61 * * * *", "timezone": "Europe/Nowhere"},
        misspelt=1,
    )
    assert set(found) == {
        "url",
        "run_at",
        "group_key",
        "context.retry_params.base_dealy",
        "notify_scheme.method",
        "repeat.cron",
        "repeat.timezone",
        "misspelt",
    }
    assert "timezone" in found["run_at"]


@pytest.mark.parametrize("delay", [-1, 3.2e8, "5", True])
def test_s1_a_delay_is_seconds_within_ten_years(delay: Any) -> None:
    assert set(faults(delay=delay)) == {"delay"}


def test_s1_a_moment_is_given_once() -> None:
    assert set(faults(delay=1, run_at="2026-11-20T15:00:00Z")) == {"delay"}


@pytest.mark.parametrize("context", [{"a": [1, None]}, [1, 2], 7, "plain text", None, True])
def test_s4_context_is_any_json(context: Any) -> None:
    assert order(context=context).context == context


def test_s4_a_text_that_holds_json_is_that_json() -> None:
    assert order(context='{"a": {"b": 1}}').context == {"a": {"b": 1}}
    assert order(context=" [1, 2]").context == [1, 2]
    assert set(faults(context='{"a": ')) == {"context"}


def test_s5_retry_params_may_stand_inside_context_also_in_a_text() -> None:
    params = {"strategy": "constant", "base_delay": 7}
    assert order(context={"retry_params": params}).retry.base_delay == 7
    assert order(context=json.dumps({"retry_params": params})).retry.base_delay == 7
    assert order(retry_params=params).retry.base_delay == 7


def test_s5_retry_params_are_given_once() -> None:
    params = {"quick_retries_count": 1}
    assert set(faults(retry_params=params, context={"retry_params": params})) == {"retry_params"}


def test_s5_defaults() -> None:
    retry = order().retry
    assert (retry.stop_after_delay, retry.quick_retries_count) == (5 * 86_400, 5)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"strategy": "sometimes"}, {"strategy"}),
        ({"strategy": "constant"}, {"base_delay"}),
        ({"strategy": "exponential"}, {"base_delay", "delay_growth_rate"}),
        ({"strategy": "exponential", "base_delay": 1}, {"delay_growth_rate"}),
        ({"base_delay": -1}, {"base_delay"}),
        ({"stop_after_delay": -5}, {"stop_after_delay"}),
        ({"quick_retries_count": -1}, {"quick_retries_count"}),
        ({"quick_retries_count": 1.5}, {"quick_retries_count"}),
        ({"delay_growth_rate": 2}, {"delay_growth_rate"}),
        ({"more": 1}, {"more"}),
        ({"stop_after_delay": "soon", "quick_retries_count": None}, None),
    ],
)
@pytest.mark.parametrize("where", ["retry_params", "context.retry_params"])
def test_s5_anything_else_there_is_named(where: str, params: Any, named: set[str] | None) -> None:
    outer, _, inner = where.partition(".")
    given: dict[str, Any] = {outer: {inner: params} if inner else params}
    found = faults(ScheduleCallback, **given)
    wanted = {"stop_after_delay", "quick_retries_count"} if named is None else named
    assert set(found) == {f"{where}.{name}" for name in wanted}


@pytest.mark.parametrize("params", [7, [], "constant", None])
def test_s5_retry_params_inside_context_are_an_object(params: Any) -> None:
    assert set(faults(context={"retry_params": params})) == {"context.retry_params"}


@pytest.mark.parametrize(
    ("scheme", "named"),
    [
        ({"transport": "smoke"}, {"transport"}),
        ({"format": "xml"}, {"format"}),
        ({"transport": "amqp"}, {"exchange", "routing_key"}),
        ({"exchange": "e"}, {"exchange"}),
        ({"transport": "amqp", "exchange": "e", "routing_key": "", "method": "PUT"}, {"method"}),
        ({"transport": "amqp", "exchange": "e", "routing_key": "", "format": "form"}, {"format"}),
        ({"headers": {"x-service-ticket": "mine"}}, {"headers"}),
        ({"headers": {"a b": "c"}}, {"headers"}),
    ],
)
def test_s6_a_notify_scheme_fits_its_transport(scheme: Any, named: set[str]) -> None:
    assert set(faults(notify_scheme=scheme)) == {f"notify_scheme.{name}" for name in named}


def test_s6_amqp_is_not_signed() -> None:
    scheme = {"transport": "amqp", "exchange": "e", "routing_key": "k"}
    assert order(notify_scheme=scheme).notify_scheme.exchange == "e"
    assert faults(notify_scheme=scheme, hmac_secret="s")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example.com/",
        "//a",
        "https://user:pw@a.example.com/",
        "http:///x",
        "http://[::1",
        "",
    ],
)
def test_a_url_is_plain_http(url: str) -> None:
    assert set(faults(url=url)) == {"url"}


@pytest.mark.parametrize(
    ("repeat", "named"),
    [
        ({}, "every"),
        ({"every": 60, "cron": "* * * * *"}, "every"),
        ({"every": 0.5}, "every"),
        ({"every": 60, "timezone": "UTC"}, "timezone"),
        ({"cron": "* * *"}, "cron"),
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"cron": "* * * * *", "timezone": "../../etc/passwd"}, "timezone"),
        ({"cron": "* * * * *", "count": 0}, "count"),
        ({"cron": "* * * * *", "until": "2026-01-01T00:00:00"}, "until"),
    ],
)
def test_a_repeat_has_one_rhythm(repeat: Any, named: str) -> None:
    assert set(faults(repeat=repeat)) == {f"repeat.{named}"}


def test_misfire_has_a_short_form() -> None:
    assert order(misfire="skip").misfire.grace == 60
    assert order(misfire={"policy": "skip", "grace": 5}).misfire.grace == 5
    assert order().misfire.policy == "fire"
    assert set(faults(misfire="never")) == {"misfire.policy"}
    assert set(faults(misfire={"policy": "skip", "grace": -1})) == {"misfire.grace"}


def test_fields_of_two_kinds_are_named_without_the_kinds() -> None:
    assert set(faults(hmac_secret=7)) == {"hmac_secret"}
    assert set(faults(hmac_secret=["a", 7])) == {"hmac_secret", "hmac_secret.1"}


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_moments_beyond_the_calendar_are_named(moment: str) -> None:
    assert set(faults(run_at=moment)) == {"run_at"}
    assert set(faults(repeat={"every": 60, "until": moment})) == {"repeat.until"}


# Row 26: what PostgreSQL or the next reader refuses is refused at once.
@pytest.mark.parametrize(
    "context",
    [
        '"\\u0000"',
        '{"a\\u0000": 1}',
        '"\\ud800"',
        "NaN",
        "1e999999",
        "-Infinity",
        "[" * 10_000 + "]" * 10_000,
        "[" * 160 + "]" * 160,
        '"{\\"a\\": NaN}"',
        '"{\\"a\\": \\"\\\\u0000\\"}"',
        '"' + "[" * 10_000 + "]" * 10_000 + '"',
    ],
)
def test_row_26_what_no_store_takes_is_refused(context: str) -> None:
    with pytest.raises(ValidationError):
        ScheduleCallback.model_validate_json(f'{{"url": "{URL}", "context": {context}}}')


def test_row_26_what_only_looks_like_it_is_taken() -> None:
    assert order(context="\\u0000").context == "\\u0000"
    assert order(context={"a": "{" * 1000}).context == {"a": "{" * 1000}
    assert order(context="\U0001f600").context == "\U0001f600"


@pytest.mark.parametrize(
    "fields",
    [{}, {"id": "7b0c3f0e-5d0b-4a50-9f5c-3b1c3a7b6f10", "event_key": "e"}, {"id": "no uuid"}],
)
def test_s8_a_selector_names_one_event(fields: dict[str, Any]) -> None:
    assert faults(CancelCallback, **fields)
    assert faults(RescheduleCallback, delay=1, **fields)


def test_s8_a_group_key_alone_is_a_group_to_cancel_but_not_to_move() -> None:
    assert CancelCallback(group_key="g").whole_group
    assert not CancelCallback(group_key="g", event_key="e").whole_group
    assert faults(RescheduleCallback, group_key="g", delay=1)
    assert faults(RescheduleCallback, event_key="e")  # no moment


def test_secrets_are_not_shown() -> None:
    assert "canary" not in repr(order(hmac_secret="canary"))
    assert "canary" not in str(faults(hmac_secret="canary", secret_ref="a"))
