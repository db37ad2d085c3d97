"""The fields of schedules: an error names every wrong field at once, with a reason."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from shared.contracts.context import field_errors
from shared.contracts.schedule_changes import CancelCallback, RescheduleCallback
from shared.contracts.schedule_requests import CreateCallback
from shared.contracts.schedules import ScheduleCallback

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


def command(**fields: Any) -> ScheduleCallback:
    return ScheduleCallback.model_validate_json(json.dumps({"url": URL} | fields))


def errors(model: type[BaseModel] = ScheduleCallback, **fields: Any) -> dict[str, str]:
    """Return the errors of an invalid model, by field."""
    body = fields if model is not ScheduleCallback else {"url": URL} | fields
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(body))
    return {each.field: each.message for each in field_errors(caught.value)}


def test_s1_the_documented_command_is_valid() -> None:
    parsed = ScheduleCallback.model_validate_json(json.dumps(DOCUMENTED))
    assert (parsed.url, parsed.group_key, parsed.event_key) == (URL, "user-7", "reminder-1")
    assert parsed.retry.base_delay == 60


def test_s1_only_the_url_is_required() -> None:
    with pytest.raises(ValidationError, match="url"):
        ScheduleCallback.model_validate_json('{"run_at": "2026-11-20T15:00:00Z"}')
    assert command().run_at is None


def test_an_error_names_every_wrong_field() -> None:
    found = errors(
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
def test_s1_a_delay_is_a_number_of_seconds_up_to_ten_years(delay: Any) -> None:
    assert set(errors(delay=delay)) == {"delay"}


def test_s1_run_at_and_delay_exclude_each_other() -> None:
    assert set(errors(delay=1, run_at="2026-11-20T15:00:00Z")) == {"delay"}


@pytest.mark.parametrize("context", [{"a": [1, None]}, [1, 2], 7, "plain text", None, True])
def test_s4_the_context_is_any_json(context: Any) -> None:
    assert command(context=context).context == context


def test_s4_a_string_that_contains_json_is_parsed() -> None:
    assert command(context='{"a": {"b": 1}}').context == {"a": {"b": 1}}
    assert command(context=" [1, 2]").context == [1, 2]
    assert set(errors(context='{"a": ')) == {"context"}


def test_s5_retry_params_may_be_inside_the_context_even_as_a_string() -> None:
    params = {"strategy": "constant", "base_delay": 7}
    assert command(context={"retry_params": params}).retry.base_delay == 7
    assert command(context=json.dumps({"retry_params": params})).retry.base_delay == 7
    assert command(retry_params=params).retry.base_delay == 7


def test_s5_retry_params_must_not_be_given_twice() -> None:
    params = {"quick_retries_count": 1}
    assert set(errors(retry_params=params, context={"retry_params": params})) == {"retry_params"}


def test_s5_default_retry_params() -> None:
    retry = command().retry
    assert (retry.stop_after_delay, retry.quick_retries_count) == (5 * 86_400, 5)


@pytest.mark.parametrize(
    ("params", "fields"),
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
@pytest.mark.parametrize("place", ["retry_params", "context.retry_params"])
def test_s5_an_error_names_every_wrong_retry_parameter(
    place: str, params: Any, fields: set[str] | None
) -> None:
    outer, _, inner = place.partition(".")
    given: dict[str, Any] = {outer: {inner: params} if inner else params}
    found = errors(ScheduleCallback, **given)
    expected = {"stop_after_delay", "quick_retries_count"} if fields is None else fields
    assert set(found) == {f"{place}.{name}" for name in expected}


@pytest.mark.parametrize("params", [7, [], "constant", None])
def test_s5_retry_params_inside_the_context_must_be_an_object(params: Any) -> None:
    assert set(errors(context={"retry_params": params})) == {"context.retry_params"}


@pytest.mark.parametrize(
    ("scheme", "named"),
    [
        ({"transport": "smoke"}, {"transport"}),
        ({"format": "xml"}, {"format"}),
        ({"transport": "amqp"}, {"exchange", "routing_key"}),
        ({"exchange": "e"}, {"exchange"}),
        ({"transport": "amqp", "exchange": "e", "routing_key": "", "method": "PUT"}, {"method"}),
        ({"transport": "amqp", "exchange": "e", "routing_key": "", "format": "form"}, {"format"}),
        ({"headers": {"a b": "c"}}, {"headers"}),
    ],
)
def test_s6_a_notify_scheme_must_fit_its_transport(scheme: Any, named: set[str]) -> None:
    assert set(errors(notify_scheme=scheme)) == {f"notify_scheme.{name}" for name in named}


def test_s6_amqp_notifications_cannot_be_signed() -> None:
    scheme = {"transport": "amqp", "exchange": "e", "routing_key": "k"}
    assert command(notify_scheme=scheme).notify_scheme.exchange == "e"
    assert errors(notify_scheme=scheme, hmac_secret="s")


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
def test_a_url_must_be_http_without_credentials(url: str) -> None:
    assert set(errors(url=url)) == {"url"}


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
def test_a_repeat_has_either_an_interval_or_a_cron_expression(repeat: Any, named: str) -> None:
    assert set(errors(repeat=repeat)) == {f"repeat.{named}"}


def test_misfire_may_be_a_policy_or_an_object() -> None:
    assert command(misfire="skip").misfire.grace == 60
    assert command(misfire={"policy": "skip", "grace": 5}).misfire.grace == 5
    assert command().misfire.policy == "fire"
    assert set(errors(misfire="never")) == {"misfire.policy"}
    assert set(errors(misfire={"policy": "skip", "grace": -1})) == {"misfire.grace"}


def test_the_path_of_a_field_does_not_contain_its_types() -> None:
    assert set(errors(hmac_secret=7)) == {"hmac_secret"}
    assert set(errors(hmac_secret=["a", 7])) == {"hmac_secret", "hmac_secret.1"}


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_times_outside_the_calendar_are_rejected(time: str) -> None:
    assert set(errors(run_at=time)) == {"run_at"}
    assert set(errors(repeat={"every": 60, "until": time})) == {"repeat.until"}


# PostgreSQL or JSON parsers would refuse these values later.
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
def test_row_26_a_context_that_cannot_be_stored_is_rejected(context: str) -> None:
    with pytest.raises(ValidationError):
        ScheduleCallback.model_validate_json(f'{{"url": "{URL}", "context": {context}}}')


def test_row_26_a_valid_context_that_resembles_an_invalid_one_is_accepted() -> None:
    assert command(context="\\u0000").context == "\\u0000"
    assert command(context={"a": "{" * 1000}).context == {"a": "{" * 1000}
    assert command(context="\U0001f600").context == "\U0001f600"


@pytest.mark.parametrize(
    "fields",
    [{}, {"id": "7b0c3f0e-5d0b-4a50-9f5c-3b1c3a7b6f10", "event_key": "e"}, {"id": "not a uuid"}],
)
def test_s8_a_selector_names_exactly_one_callback(fields: dict[str, Any]) -> None:
    assert errors(CancelCallback, **fields)
    assert errors(RescheduleCallback, delay=1, **fields)


def test_s8_a_group_key_alone_cancels_a_group_but_cannot_reschedule_it() -> None:
    assert CancelCallback(group_key="g").whole_group
    assert not CancelCallback(group_key="g", event_key="e").whole_group
    assert errors(RescheduleCallback, group_key="g", delay=1)
    assert errors(RescheduleCallback, event_key="e")  # without a due time


def test_secrets_do_not_appear_in_repr_and_errors() -> None:
    assert "canary" not in repr(command(hmac_secret="canary"))
    assert "canary" not in str(errors(hmac_secret="canary", secret_ref="a"))


def test_n12_a_newer_gateway_may_add_fields_but_a_client_may_not() -> None:
    request = {"callback": {"url": URL}, "added_later": 1}
    assert CreateCallback.model_validate_json(json.dumps(request)).callback == command()
    request["callback"] = {"url": URL, "dealy": 1}
    assert errors(CreateCallback, **request) == {"callback.dealy": "Extra inputs are not permitted"}
    assert errors(CancelCallback, group_key="a", event_kye="b") == {
        "event_kye": "Extra inputs are not permitted"
    }
