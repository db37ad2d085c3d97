"""U5: codes, fields and limits of the messenger's routes, without a network."""

from http import HTTPStatus

import pytest

from services.gateway.messenger.bodies import MAX_BODY_BYTES, Fields
from services.gateway.messenger.codes import Code, coded_error, error_body, is_messenger, recoded
from services.gateway.messenger.limits import Limits
from services.gateway.messenger.schemas import CallbackForm, NewMessage, NewUser, PollForm
from services.gateway.settings import GatewaySettings
from shared.contracts.users import MAX_TEXT
from shared.http.problem import ProblemError
from shared.http.rate_limit import MAX_CLIENTS


def test_u5_each_code_has_its_number_and_a_description() -> None:
    numbers = {code.name: code.value for code in Code}
    assert numbers == {
        "OK": 10,
        "INVALID_TOKEN": -1,
        "MESSAGE_NOT_SENT": -2,
        "INVALID_PARAMETERS": -3,
        "NAME_TOO_LONG": -4,
        "PASSWORD_TOO_SHORT": -5,
        "USER_NOT_FOUND": -6,
        "TRY_AGAIN_LATER": -7,
    }
    for code in set(Code) - {Code.OK}:
        assert error_body(code, "because")["description"]
    assert error_body(Code.INVALID_TOKEN) == {"code": -1, "description": "Invalid token"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/users", True),
        ("/users/", True),
        ("//users", True),
        ("/messages", True),
        ("/events/stream", True),
        ("/", False),
        ("*", False),
        ("/v1/events", False),
        ("/usersx", False),
        ("/healthz", False),
    ],
)
def test_u5_only_paths_of_the_messenger_have_codes(path: str, *, expected: bool) -> None:
    assert is_messenger(path) is expected


def test_u5_a_failure_gets_the_code_of_its_status_and_keeps_its_headers() -> None:
    failure = coded_error(
        HTTPStatus.SERVICE_UNAVAILABLE, Code.TRY_AGAIN_LATER, "why", headers={"Retry-After": "2"}
    )
    other = recoded(failure, {HTTPStatus.SERVICE_UNAVAILABLE: Code.MESSAGE_NOT_SENT})
    assert (other.members, other.headers) == ({"code": -2}, {"Retry-After": "2"})
    assert recoded(failure, {}) is failure


def test_u1_fields_of_a_form_become_numbers_and_booleans() -> None:
    form = {"callback": "https://example.com/", "ordered": "true", "ack": "0"}
    parsed = Fields(form, form=True).parse(CallbackForm)
    assert (parsed.ordered, parsed.ack) == (True, False)
    polling = Fields({"timeout": "0.5", "limit": "10"}, form=True).parse(PollForm)
    assert (polling.timeout, polling.limit) == (0.5, 10)
    message = Fields({"to_id": "7", "text": "7"}, form=True).parse(NewMessage)
    assert (message.to_id, message.text) == (7, "7")
    with pytest.raises(ProblemError):
        Fields({"ordered": "true"}, form=False).parse(CallbackForm)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"name": "a" * 16, "password": "short", "more": "x"}, Code.NAME_TOO_LONG),
        ({"name": "\0", "password": "short", "more": "x"}, Code.PASSWORD_TOO_SHORT),
        ({"name": "\0", "password": "long enough", "more": "x"}, None),
    ],
)
def test_u5_name_then_password_then_everything_else_is_checked(
    fields: dict[str, str], code: Code | None
) -> None:
    for form in (False, True):
        with pytest.raises(ProblemError) as raised:
            Fields(fields, form).parse(NewUser)
        assert raised.value.members.get("code") is code
        assert "short" not in str(raised.value)


def test_the_longest_message_fits_in_a_body() -> None:
    assert MAX_TEXT * len("%F0%9F%A6%84") + 1000 <= MAX_BODY_BYTES


def test_u5_tokens_of_one_user_count_together_and_their_number_is_bounded() -> None:
    limits = Limits(GatewaySettings(messages_per_user=2))
    for token in ("a", "b"):
        limits.remember_user(token, 1)
        limits.count_message(token)
    with pytest.raises(ProblemError) as raised:
        limits.count_message("a")
    assert raised.value.status == HTTPStatus.TOO_MANY_REQUESTS
    limits.count_message("of another user")
    for number in range(2 * MAX_CLIENTS):
        limits.remember_user(str(number), number)
    assert len(limits._users) == MAX_CLIENTS  # noqa: SLF001


def test_u1_starts_and_tests_of_a_callback_are_limited_per_user() -> None:
    limits = Limits(GatewaySettings(callbacks_per_user=2))
    for token in ("a", "b"):
        limits.remember_user(token, 1)
        limits.count_callback(token)
    with pytest.raises(ProblemError) as raised:
        limits.count_callback("a")
    assert raised.value.members == {"code": -7}
    limits.count_callback("of another user")


def test_u5_long_names_count_together() -> None:
    limits = Limits(GatewaySettings(sign_ins_per_name=2))
    limits.count_sign_in_as("a" * 16)
    limits.count_sign_in_as("b" * 1000)
    with pytest.raises(ProblemError):
        limits.count_sign_in_as("c" * 99)
    limits.count_sign_in_as("c" * 15)
