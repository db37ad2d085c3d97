"""The routes of the messenger: users, their tokens, messages and callbacks.

Each sends a request to subscriptions. Tokens are created and hashed here, so no other process sees
them.
"""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from secrets import token_urlsafe
from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel
from pydantic_core import to_json

from services.gateway.messenger.bodies import read_fields
from services.gateway.messenger.codes import Code, recoded
from services.gateway.messenger.declaration import (
    ANYONE,
    BODY_FAILURES,
    EXAMPLE_TOKEN,
    INVALID_TOKEN,
    SIGNED_IN,
    TAG,
    WRONG_PASSWORD,
    coded,
    failures,
    invalid_parameters,
)
from services.gateway.messenger.schemas import (
    CallbackForm,
    CallbackTestSent,
    Done,
    MessageSent,
    NewMessage,
    NewUser,
    Registered,
    SecretIssued,
    SignInForm,
    TokenForm,
    TokenIssued,
)
from services.gateway.middleware import USER_ID
from services.gateway.responses import json_response
from services.gateway.routes.declaration import Dependencies, Route, ok
from shared.amqp.rpc import RequestContext
from shared.contracts.registrations import START_CALLBACK, STOP_CALLBACK, TEST_CALLBACK
from shared.contracts.requests import RpcOperation
from shared.contracts.users import (
    REGISTER_USER,
    SEND_USER_MESSAGE,
    SIGN_IN,
    SIGN_OUT,
    token_hash,
)
from shared.http.openapi import Body
from shared.http.problem import ProblemError

TOKEN_BYTES: Final = 32

_NO_CODES: Final[Mapping[HTTPStatus, Code]] = {}
_WRONG_PASSWORD: Final = {HTTPStatus.UNAUTHORIZED: Code.USER_NOT_FOUND}
_NOT_SENT: Final = {
    HTTPStatus.NOT_FOUND: Code.USER_NOT_FOUND,
    HTTPStatus.INTERNAL_SERVER_ERROR: Code.MESSAGE_NOT_SENT,
    HTTPStatus.SERVICE_UNAVAILABLE: Code.MESSAGE_NOT_SENT,
    HTTPStatus.GATEWAY_TIMEOUT: Code.MESSAGE_NOT_SENT,
}
_CREDENTIALS: Final = {"A user": {"name": "ann", "password": "correct horse"}}
_TOKEN: Final = {"The token": {"token": EXAMPLE_TOKEN}}
_DONE: Final = {200: ok("Done.", Done, {"code": 10})}
_NO_CALLBACK: Final = {
    404: coded("The user has no callback.", (Code.INVALID_PARAMETERS, "no callback is registered")),
    409: coded(
        "The callback is disabled.",
        (
            Code.INVALID_PARAMETERS,
            "the callback is disabled because it failed; start it again",
        ),
    ),
}


def routes(example_url: str) -> tuple[Route, ...]:
    """Return the routes; the example of a callback is `example_url`."""
    return (
        Route(
            method="POST",
            path="/users",
            operation_id="register_user",
            handler=register_user,
            tag=TAG,
            summary="Register a user",
            description="A name has 1 to 15 characters and is unique. A password has at least 8"
            " characters.",
            body=Body(NewUser, _CREDENTIALS),
            schemes=ANYONE,
            responses={
                200: ok("Registered.", Registered, {"code": 10, "user_id": 1}),
                409: coded("The name is taken.", (Code.INVALID_PARAMETERS, "the name is taken")),
                **invalid_parameters(
                    "password: Field required", Code.NAME_TOO_LONG, Code.PASSWORD_TOO_SHORT
                ),
                **BODY_FAILURES,
                **failures(),
            },
        ),
        Route(
            method="POST",
            path="/users/login",
            operation_id="sign_in_user",
            handler=sign_in,
            tag=TAG,
            summary="Sign in",
            description="Returns a token, which expires after 30 days by default. A user can have"
            " several. A new token continues after the last event that polls of the user have"
            " returned.",
            body=Body(SignInForm, _CREDENTIALS),
            schemes=ANYONE,
            responses={
                200: ok("Signed in.", TokenIssued, {"code": 10, "token": EXAMPLE_TOKEN}),
                **WRONG_PASSWORD,
                **invalid_parameters("password: Field required"),
                **BODY_FAILURES,
                **failures(),
            },
        ),
        Route(
            method="POST",
            path="/users/logout",
            operation_id="sign_out_user",
            handler=sign_out,
            tag=TAG,
            summary="Sign out",
            description="Revokes the token, and ends its polls and streams.",
            body=Body(TokenForm, _TOKEN),
            schemes=SIGNED_IN,
            responses={
                **_DONE,
                **INVALID_TOKEN,
                **invalid_parameters("name: Extra inputs are not permitted"),
                **BODY_FAILURES,
                **failures(),
            },
        ),
        Route(
            method="POST",
            path="/messages",
            operation_id="send_message",
            handler=send_message,
            tag=TAG,
            summary="Send a message to a user",
            description="The recipient gets it as an event of type `new_message`, by callback, poll"
            " or stream. The response comes after the commit, so an accepted message is not lost.",
            body=Body(
                NewMessage, {"A message": {"token": EXAMPLE_TOKEN, "to_id": 2, "text": "Hello"}}
            ),
            schemes=SIGNED_IN,
            responses={
                200: ok("Sent.", MessageSent, {"code": 10, "message_id": 1}),
                **INVALID_TOKEN,
                404: coded("The recipient does not exist.", (Code.USER_NOT_FOUND, "")),
                **invalid_parameters("to_id: Field required"),
                **BODY_FAILURES,
                **failures(Code.MESSAGE_NOT_SENT),
            },
        ),
        Route(
            method="POST",
            path="/events/callback/start",
            operation_id="start_callback",
            handler=start_callback,
            tag=TAG,
            summary="Register the server that receives your events",
            description='Sends each later event to this URL, as a POST of `{"type", "event"}` with'
            " the header `x-ringback-sequence`, signed with the secret in the response. An earlier"
            " callback is replaced. If its URL was different, both servers get the event"
            " `callback_deprecated`.",
            body=Body(
                CallbackForm,
                {
                    "A callback": {"token": EXAMPLE_TOKEN, "callback": example_url},
                    "In strict order, with a pinned certificate": {
                        "token": EXAMPLE_TOKEN,
                        "callback": "https://203.0.113.7:8443/",
                        "fingerprint": "9f86d081884c7d659a2feaa0c55ad015"
                        "a3bf4f1b2b0b822cd15d6c15b0f00a08",
                        "ordered": True,
                    },
                },
            ),
            schemes=SIGNED_IN,
            responses={
                200: ok(
                    "Registered.",
                    SecretIssued,
                    {"code": 10, "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"},
                ),
                **INVALID_TOKEN,
                **invalid_parameters("callback: URL must begin with http:// or https://"),
                **BODY_FAILURES,
                **failures(),
            },
        ),
        Route(
            method="POST",
            path="/events/callback/stop",
            operation_id="stop_callback",
            handler=stop_callback,
            tag=TAG,
            summary="Remove your callback",
            description="Cancels the pushes of events that are not delivered yet. Polls and streams"
            " still return these events.",
            body=Body(TokenForm, _TOKEN),
            schemes=SIGNED_IN,
            responses={
                **_DONE,
                **INVALID_TOKEN,
                **invalid_parameters("name: Extra inputs are not permitted"),
                **BODY_FAILURES,
                **failures(),
            },
        ),
        Route(
            method="POST",
            path="/events/callback/test",
            operation_id="test_callback",
            handler=test_callback,
            tag=TAG,
            summary="Send a test event to your callback",
            description="The event has the type `test` and no sequence. `webhook_id` is its header"
            " `webhook-id`.",
            body=Body(TokenForm, _TOKEN),
            schemes=SIGNED_IN,
            responses={
                200: ok(
                    "The test event is on its way.",
                    CallbackTestSent,
                    {"code": 10, "webhook_id": "test-5f0c7b1e8d0f4f6e9b616f6d6d0a4c11"},
                ),
                **INVALID_TOKEN,
                **_NO_CALLBACK,
                **invalid_parameters("name: Extra inputs are not permitted"),
                **BODY_FAILURES,
                **failures(),
            },
        ),
    )


async def register_user(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Register a user; respond after the commit."""
    deps.limits.count_registration(request)
    user = (await read_fields(request)).parse(NewUser)
    registered = await _request(deps, REGISTER_USER, {"user": user}, context)
    request[USER_ID] = registered["user_id"]
    return _done(user_id=registered["user_id"])


async def sign_in(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Return a new token of a user."""
    deps.limits.count_sign_in_from(request)
    form = (await read_fields(request)).parse(SignInForm)
    deps.limits.count_sign_in_as(form.name)
    token = token_urlsafe(TOKEN_BYTES)
    hashed = token_hash(token)
    content = {"name": form.name, "password": form.password, "token_hash": hashed}
    signed_in = await _request(deps, SIGN_IN, content, context, _WRONG_PASSWORD)
    request[USER_ID] = signed_in["user_id"]
    deps.limits.remember_user(hashed, signed_in["user_id"])
    return _done(token=token)


async def sign_out(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Revoke a token."""
    return await _with_token(SIGN_OUT, request, context, deps)


async def send_message(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Send a message to a user; respond after the commit."""
    deps.limits.count_message_from(request)
    given = await read_fields(request)
    hashed = given.token_hash(request)
    message = given.parse(NewMessage)
    deps.limits.count_message(hashed)
    content = {"token_hash": hashed, "to_id": message.to_id, "text": message.text}
    sent = await _request(deps, SEND_USER_MESSAGE, content, context, _NOT_SENT)
    request[USER_ID] = sent["from_id"]
    deps.limits.remember_user(hashed, sent["from_id"])
    return _done(message_id=sent["message_id"])


async def start_callback(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Register the callback of a user, or replace it; respond after the commit."""
    given = await read_fields(request)
    hashed = given.token_hash(request)
    registration = given.parse(CallbackForm).model_dump(exclude={"token"}, exclude_none=True)
    deps.limits.count_callback(hashed)
    content = {"token_hash": hashed, "registration": registration}
    started = await _request(deps, START_CALLBACK, content, context)
    return _done(secret=started["secret"])


async def stop_callback(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Remove the callback of a user."""
    return await _with_token(STOP_CALLBACK, request, context, deps)


async def test_callback(
    request: web.Request, context: RequestContext, deps: Dependencies
) -> web.Response:
    """Send a test event to the callback of a user."""
    return await _with_token(
        TEST_CALLBACK, request, context, deps, "webhook_id", limit=deps.limits.count_callback
    )


async def _with_token(
    operation: RpcOperation[BaseModel],
    request: web.Request,
    context: RequestContext,
    deps: Dependencies,
    *returned: str,
    limit: Callable[[str], None] | None = None,
) -> web.Response:
    """Send a request with nothing but a token, and return these fields of the response."""
    given = await read_fields(request)
    hashed = given.token_hash(request)
    given.parse(TokenForm)
    if limit is not None:
        limit(hashed)
    response = await _request(deps, operation, {"token_hash": hashed}, context)
    return _done(**{name: response[name] for name in returned})


async def _request(
    deps: Dependencies,
    operation: RpcOperation[BaseModel],
    content: Mapping[str, Any],
    context: RequestContext,
    codes: Mapping[HTTPStatus, Code] = _NO_CODES,
) -> Any:
    """Send a request to subscriptions. A failure has the code of its status in `codes`."""
    try:
        return await deps.services.request(operation, to_json(content), context)
    except ProblemError as problem:
        raise recoded(problem, codes) from None


def _done(**content: Any) -> web.Response:
    return json_response({"code": Code.OK.value, **content})
