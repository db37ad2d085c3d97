"""The handlers of requests about the callbacks that users register."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

from services.subscriptions.deliveries.registrations import (
    NotRegisteredError,
    RegistrationDisabledError,
    Registrations,
)
from shared.amqp.publisher import new_id
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.contracts.registrations import (
    START_CALLBACK,
    STOP_CALLBACK,
    TEST_CALLBACK,
    CallbackStarted,
    CallbackStopped,
    CallbackTested,
    StartCallback,
    StopCallback,
    TestCallback,
)
from shared.contracts.requests import Failure, FailureCode, FieldError, invalid

logger = logging.getLogger(__name__)

# Requests that use a database connection at a time.
MAX_CONCURRENT: Final = 2
INVALID_TOKEN: Final = Failure(code=FailureCode.UNAUTHORIZED, detail="the token is not valid")
NOT_REGISTERED: Final = Failure(code=FailureCode.NOT_FOUND, detail="no callback is registered")
DISABLED: Final = Failure(
    code=FailureCode.CONFLICT, detail="the callback is disabled because it failed; start it again"
)
NOT_HTTPS: Final = invalid([FieldError(field="fingerprint", message="requires an https URL")])


class RegistrationRequests:
    """Handles requests of users about their callbacks.

    wake: called when deliveries may have become due.
    """

    def __init__(self, registrations: Registrations, wake: Callable[[], None]) -> None:
        self._registrations = registrations
        self._wake = wake
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict(
            (
                bound(START_CALLBACK, self._start, within="registration"),
                bound(STOP_CALLBACK, self._stop),
                bound(TEST_CALLBACK, self._test),
            )
        )

    async def _start(self, context: RequestContext, command: StartCallback) -> Response:
        registration = command.registration
        scheme = urlsplit(registration.callback).scheme.lower()
        if registration.fingerprint is not None and scheme != "https":
            return NOT_HTTPS
        async with self._slots:
            started = await self._registrations.start(
                bytes.fromhex(command.token_hash), registration, _request_id(context)
            )
        if started is None:
            return INVALID_TOKEN
        self._wake()
        logger.info("callback registered", extra={"user_id": started.user_id})
        return CallbackStarted(secret=started.secret)

    async def _stop(self, _: RequestContext, command: StopCallback) -> Response:
        async with self._slots:
            user_id = await self._registrations.stop(bytes.fromhex(command.token_hash))
        if user_id is None:
            return INVALID_TOKEN
        logger.info("callback removed", extra={"user_id": user_id})
        return CallbackStopped(user_id=user_id)

    async def _test(self, context: RequestContext, command: TestCallback) -> Response:
        try:
            async with self._slots:
                webhook_id = await self._registrations.test(
                    bytes.fromhex(command.token_hash), _request_id(context)
                )
        except NotRegisteredError:
            return NOT_REGISTERED
        except RegistrationDisabledError:
            return DISABLED
        if webhook_id is None:
            return INVALID_TOKEN
        self._wake()
        return CallbackTested(webhook_id=webhook_id)


def _request_id(context: RequestContext) -> str:
    return context.message_id or new_id()
