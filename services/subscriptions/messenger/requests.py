"""The handlers of requests about users, their tokens, messages and events."""

import asyncio
import json
import logging
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from typing import Final

from services.subscriptions import metrics
from services.subscriptions.messenger.appending import Appender
from services.subscriptions.messenger.domain import Outcome, Page, UserMessage, message_event
from services.subscriptions.messenger.passwords import Passwords
from services.subscriptions.messenger.store import InvalidCursorError, Messenger
from shared.amqp.publisher import new_id
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.contracts.polls import (
    READ_EVENTS,
    EventRead,
    EventsRead,
    ReadEvents,
    UserCursor,
    decode_user_cursor,
    encode_user_cursor,
)
from shared.contracts.requests import Failure, FailureCode, FieldError, invalid
from shared.contracts.users import (
    REGISTER_USER,
    SEND_USER_MESSAGE,
    SIGN_IN,
    SIGN_OUT,
    RegisterUser,
    SendUserMessage,
    SignedIn,
    SignedOut,
    SignIn,
    SignOut,
    UserMessageSent,
    UserRegistered,
)

logger = logging.getLogger(__name__)

# Requests that use a database connection at a time: those of polls, which come in bursts, and the
# others.
MAX_CONCURRENT_READS: Final = 4
MAX_CONCURRENT: Final = 2
INVALID_TOKEN: Final = Failure(code=FailureCode.UNAUTHORIZED, detail="the token is not valid")
INVALID_PASSWORD: Final = Failure(
    code=FailureCode.UNAUTHORIZED, detail="the name or the password is wrong"
)
NAME_TAKEN: Final = Failure(code=FailureCode.CONFLICT, detail="the name is taken")
USER_NOT_FOUND: Final = Failure(code=FailureCode.NOT_FOUND, detail="the user does not exist")
INVALID_CURSOR: Final = invalid([FieldError(field="cursor", message="is not a valid cursor")])


class MessengerRequests:
    """Handles requests of users. `revoked` gets the user of a revoked token, whose polls end."""

    def __init__(
        self,
        messenger: Messenger,
        appender: Appender,
        passwords: Passwords,
        revoked: Callable[[Collection[int]], None],
        *,
        token_lifetime: timedelta,
    ) -> None:
        self._messenger = messenger
        self._appender = appender
        self._passwords = passwords
        self._revoked = revoked
        self._token_lifetime = token_lifetime
        self._reads = asyncio.Semaphore(MAX_CONCURRENT_READS)
        self._others = asyncio.Semaphore(MAX_CONCURRENT)

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict(
            (
                bound(REGISTER_USER, self._register, within="user"),
                bound(SIGN_IN, self._sign_in),
                bound(SIGN_OUT, self._sign_out),
                bound(SEND_USER_MESSAGE, self._send),
                bound(READ_EVENTS, self._read),
            )
        )

    async def _register(self, context: RequestContext, command: RegisterUser) -> Response:
        user = command.user
        hashed = await self._passwords.hash(user.password)
        async with self._others:
            user_id = await self._messenger.register(user.name, hashed, _request_id(context))
        if user_id is None:
            return NAME_TAKEN
        logger.info("user registered", extra={"user_id": user_id})
        return UserRegistered(user_id=user_id)

    async def _sign_in(self, _: RequestContext, command: SignIn) -> Response:
        async with self._others:
            found = await self._messenger.password(command.name)
        user_id, stored = found or (None, None)
        valid = await self._passwords.verify(command.password, stored)
        if user_id is None or not valid:
            metrics.REJECTED.inc()
            logger.warning("sign-in rejected", extra={"user_id": user_id})
            return INVALID_PASSWORD
        async with self._others:
            expires_at = await self._messenger.sign_in(
                bytes.fromhex(command.token_hash), user_id, self._token_lifetime
            )
        metrics.SIGNED_IN.inc()
        logger.info("user signed in", extra={"user_id": user_id})
        return SignedIn(user_id=user_id, expires_at=expires_at)

    async def _sign_out(self, _: RequestContext, command: SignOut) -> Response:
        async with self._others:
            user_id = await self._messenger.sign_out(bytes.fromhex(command.token_hash))
        if user_id is None:
            return INVALID_TOKEN
        self._revoked([user_id])
        logger.info("user signed out", extra={"user_id": user_id})
        return SignedOut(user_id=user_id)

    async def _send(self, context: RequestContext, command: SendUserMessage) -> Response:
        async with self._reads:
            from_id = await self._messenger.user_of(bytes.fromhex(command.token_hash))
        if from_id is None:
            return INVALID_TOKEN
        message = UserMessage(from_id, command.to_id, command.text)
        result = await self._appender.append(message_event(message, _request_id(context)))
        if result.outcome is Outcome.UNKNOWN_USER:
            return USER_NOT_FOUND
        message_id = json.loads(result.event)["message_id"]
        return UserMessageSent(message_id=message_id, from_id=from_id)

    async def _read(self, _: RequestContext, command: ReadEvents) -> Response:
        token = bytes.fromhex(command.token_hash)
        try:
            cursor = None if command.cursor is None else decode_user_cursor(command.cursor)
            async with self._reads:
                if cursor is None:
                    page = await self._messenger.read(token, command.limit)
                else:
                    page = await self._messenger.read_after(token, *cursor, command.limit)
        except (ValueError, InvalidCursorError):
            return INVALID_CURSOR
        return INVALID_TOKEN if page is None else _events_read(page)


def _events_read(page: Page) -> EventsRead:
    def cursor(sequence: int) -> str:
        return encode_user_cursor(UserCursor(page.user_id, sequence))

    last = page.events[-1].sequence if page.events else page.position
    return EventsRead(
        user_id=page.user_id,
        events=[
            EventRead(cursor=cursor(event.sequence), type=event.type, event=event.event)
            for event in page.events
        ],
        next_cursor=cursor(last),
        expires_at=page.expires_at,
    )


def _request_id(context: RequestContext) -> str:
    return context.message_id or new_id()
