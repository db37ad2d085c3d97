"""The meaning of a provider's responses, its rate, and the retry policy: pure functions, no IO."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pydantic_core import from_json

from shared.contracts.message_facts import ReasonCode, ReturnCode
from shared.contracts.messages import RenderedMessage
from shared.errors import (
    ContractViolationError,
    DeferredError,
    ExpiredError,
    PermanentError,
    TransientError,
)
from shared.http.retry_after import RETRY_AFTER_STATUSES, parse_retry_after
from shared.registry import BULK, URGENT, Priority
from shared.resilience.retry import RetryPolicy

# SMTP codes that concern the connection and not the mail: they require authentication or TLS
# (RFC 4954, 3207).
_CONNECTION_CODES: Final = frozenset({530, 534, 535, 538})
# The server closes the connection, usually because there are too many.
SERVER_BUSY: Final = 421
# Servers respond with these when they get too many mails, and for greylisting.
_THROTTLING_CODES: Final = frozenset({450, 451})
_ENHANCED_CODE: Final = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}(?![0-9.])")
_SMTP_TEMPORARY: Final = range(400, 500)
_SMTP_PERMANENT: Final = range(500, 600)
# HTTP statuses of the SMS gateway that concern this message, and those that concern our key.
_MESSAGE_INVALID: Final = frozenset({400, 422})
_KEY_REFUSED: Final = frozenset({401, 403})
_SERVER_ERROR: Final = 500
_OK: Final = 200


class ProviderError(TransientError):
    """The mail server or the gateway does not work; counts against its circuit breaker.

    Any other TransientError concerns the message, and the provider works.
    """


class BusyError(ProviderError):
    """The provider closed the connection, because it has too many: not an attempt."""


class WithheldError(PermanentError):
    """The message may not be sent now, and is returned to its mailing. `code` says why."""

    def __init__(self, reason: str, code: ReturnCode) -> None:
        super().__init__(reason)
        self.code = code


class ThrottledError(TransientError):
    """The provider wants fewer messages. Many in a row open its circuit breaker."""


@dataclass(frozen=True, slots=True)
class Rate:
    """The rate of a provider in messages per second, and the largest number at once."""

    per_second: float
    burst: float

    @property
    def reserve(self) -> float:
        """Return the tokens that bulk messages leave, so that an urgent one need not wait."""
        return 1.0 if self.burst >= 2 else 0.0  # noqa: PLR2004 - one for each priority


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a provider: messages in flight and, optionally, a rate."""

    concurrency: int
    rate: Rate | None


@dataclass(frozen=True, slots=True)
class Grant:
    """Tokens taken from a bucket, those left in it, and seconds until there are more."""

    tokens: int
    left: float
    delay: float


def take_tokens(rate: Rate, tokens: float, elapsed: float, wanted: Mapping[Priority, int]) -> Grant:
    """Take tokens from a bucket that was last used `elapsed` seconds ago, urgent ones first.

    In any `t` seconds, at most `burst + per_second * t` tokens are taken.
    """
    tokens = min(rate.burst, tokens + elapsed * rate.per_second)
    urgent = min(wanted[URGENT], int(tokens))
    bulk = max(min(wanted[BULK], int(tokens - urgent - rate.reserve)), 0)
    left = tokens - urgent - bulk
    needed = 1.0 if urgent < wanted[URGENT] else 1.0 + rate.reserve
    return Grant(urgent + bulk, left, max((needed - left) / rate.per_second, 0.0))


def smtp_error(code: int, text: str, step: str) -> TransientError | PermanentError:
    """Return the error for a negative SMTP response to MAIL, RCPT or DATA.

    Its text contains only numbers, because servers quote the address in theirs.
    """
    enhanced = _ENHANCED_CODE.match(text)
    numbers = f"{code} {enhanced[0]}" if enhanced else str(code)
    reason = f"the mail server responded with {numbers} to {step}"
    if code == SERVER_BUSY:
        return BusyError(reason)
    if code in _CONNECTION_CODES or code not in (*_SMTP_TEMPORARY, *_SMTP_PERMANENT):
        return ProviderError(reason)
    if code in _THROTTLING_CODES:
        return ThrottledError(reason)
    if code in _SMTP_TEMPORARY:
        return TransientError(reason)
    # MAIL names only our sender address, so a refusal concerns every mail.
    return ProviderError(reason) if step == "MAIL" else PermanentError(reason)


def check_sms_response(status: int, retry_after: str | None, body: bytes, *, now: float) -> None:
    """Check that the SMS gateway accepted the message: 200 and a JSON object whose `code` is 0.

    The errors contain only numbers of the response.

    Raises:
        PermanentError: 400 or 422, the message is not valid.
        ProviderError: not a valid response, overload, a server error, or our key is refused.
        TransientError: any other refusal.
    """
    reason = f"the SMS gateway responded with {status}"
    if status in _MESSAGE_INVALID:
        raise PermanentError(reason)
    if status in _KEY_REFUSED:
        raise ProviderError(f"{reason}: it refuses RINGBACK_SMS_KEY")
    if status in RETRY_AFTER_STATUSES:
        raise ProviderError(reason, retry_after=parse_retry_after(retry_after, now=now))
    if status >= _SERVER_ERROR:
        raise ProviderError(reason)
    if status != _OK:
        raise TransientError(reason)
    try:
        response = from_json(body)
    except ValueError:
        raise ProviderError(f"{reason}, but not with JSON") from None
    code = response.get("code") if isinstance(response, dict) else None
    if type(code) is not int:
        raise ProviderError(f"{reason}, but with JSON without a code")
    if code:
        raise TransientError(f"{reason}, but refused with code {str(code)[:20]}")


def retry_policy(command: RenderedMessage, *, give_up_after: float) -> RetryPolicy:
    """Return the retry policy: through all tiers, until the message expires or time runs out.

    A message of a mailing expires in its handler, so that it is not dead-lettered.
    """
    expires_at = _expiry(command) if command.mailing_id is None else None
    return RetryPolicy(give_up_after=give_up_after, expires_at=expires_at)


def check_time(command: RenderedMessage, now: Callable[[], float]) -> None:
    """Check that the message may be sent at this time.

    Raises:
        ExpiredError: `expires_at` has passed.
        WithheldError: `send_until` has passed.
    """
    if (expiry := _expiry(command)) is not None and now() >= expiry:
        raise ExpiredError(f"expired at {command.expires_at}")
    if command.send_until is not None and now() >= command.send_until.timestamp():
        reason = f"the recipient's local hours ended at {command.send_until}"
        raise WithheldError(reason, ReasonCode.WINDOW_CLOSED)


def time_limit(command: RenderedMessage) -> float:
    """Return the time at which `check_time` begins to fail, in epoch seconds."""
    limits = (command.expires_at, command.send_until)
    return min((limit.timestamp() for limit in limits if limit is not None), default=math.inf)


def _expiry(command: RenderedMessage) -> float | None:
    return command.expires_at.timestamp() if command.expires_at else None


def reason_code(error: Exception) -> ReasonCode:
    """Return the code for the error of the last attempt of a failed message."""
    match error:
        case ContractViolationError():
            return ReasonCode.INVALID
        case PermanentError():
            return ReasonCode.REFUSED
        case ProviderError() | DeferredError():
            return ReasonCode.PROVIDER_UNAVAILABLE
        case TransientError():
            return ReasonCode.ATTEMPTS_EXHAUSTED
        case _:
            return ReasonCode.OTHER
