"""The meaning of a provider's responses, and the retry policy: pure functions, no IO."""

import re
from collections.abc import Callable
from typing import Final

from pydantic_core import from_json

from shared.contracts.messages import RenderedMessage
from shared.errors import ExpiredError, PermanentError, TransientError
from shared.http.retry_after import RETRY_AFTER_STATUSES, parse_retry_after
from shared.resilience.retry import RetryPolicy

# SMTP codes that concern the connection and not the mail: 421 (server closes), and codes that
# require authentication or TLS (RFC 4954, 3207).
SERVER_CLOSES: Final = 421
_CONNECTION_CODES: Final = frozenset({SERVER_CLOSES, 530, 534, 535, 538})
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


def smtp_error(code: int, text: str, step: str) -> TransientError | PermanentError:
    """Return the error for a negative SMTP response to MAIL, RCPT or DATA.

    Its text contains only numbers, because servers quote the address in theirs.
    """
    enhanced = _ENHANCED_CODE.match(text)
    numbers = f"{code} {enhanced[0]}" if enhanced else str(code)
    reason = f"the mail server responded with {numbers} to {step}"
    if code in _CONNECTION_CODES or code not in (*_SMTP_TEMPORARY, *_SMTP_PERMANENT):
        return ProviderError(reason)
    return PermanentError(reason) if code in _SMTP_PERMANENT else TransientError(reason)


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
    """Return the retry policy: through all tiers, until the message expires or time runs out."""
    return RetryPolicy(give_up_after=give_up_after, expires_at=_expiry(command))


def check_expiry(command: RenderedMessage, now: Callable[[], float]) -> None:
    """Check that the message may still be sent.

    Raises:
        ExpiredError: `expires_at` has passed.
    """
    expiry = _expiry(command)
    if expiry is not None and now() >= expiry:
        raise ExpiredError(f"expired at {command.expires_at}")


def _expiry(command: RenderedMessage) -> float | None:
    return command.expires_at.timestamp() if command.expires_at else None
