"""What an answer to a message means, and until when it is tried: pure functions, no IO."""

import re
from collections.abc import Callable
from typing import Final

from pydantic_core import from_json

from shared.contracts.messages import SendEmail, SendSms
from shared.errors import ExpiredError, PermanentError, TransientError
from shared.http.retry_after import RETRY_AFTER_STATUSES, parse_retry_after
from shared.resilience.retry import RetryPolicy

# SMTP, to any command: 421, and what says that one must log in or use TLS first (RFC 4954, 3207),
# is about the connection, whatever mail was meant.
CLOSING: Final = 421
_ABOUT_THE_CONNECTION: Final = frozenset({CLOSING, 530, 534, 535, 538})
_ENHANCED: Final = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}(?![0-9.])")
# HTTP, from the SMS gateway: about this message; about our key.
_REFUSED_FOR_GOOD: Final = frozenset({400, 422})
_NOT_LET_IN: Final = frozenset({401, 403})
_SERVER_ERROR: Final = 500
_TEMPORARY: Final = range(400, 500)
_PERMANENT: Final = range(500, 600)
_OK: Final = 200


class ProviderError(TransientError):
    """The mail server or the gateway is unwell: counts against its breaker, whatever the message.

    A TransientError that is none is about this message, from a server that is well.
    """


def refused(code: int, text: str, step: str) -> TransientError | PermanentError:
    """What an SMTP answer other than yes to MAIL, RCPT or DATA means.

    Only its numbers are told: servers quote the address, or more, in the text.
    """
    enhanced = _ENHANCED.match(text)
    numbers = f"{code} {enhanced[0]}" if enhanced else str(code)
    reason = f"the mail server answered {numbers} to {step}"
    if code in _ABOUT_THE_CONNECTION or code not in (*_TEMPORARY, *_PERMANENT):
        return ProviderError(reason)
    return PermanentError(reason) if code in _PERMANENT else TransientError(reason)


def judge(status: int, retry_after: str | None, body: bytes, *, now: float) -> None:
    """What the SMS gateway's answer means: nothing to say when it is sent.

    That is 200 with a JSON object whose `code` is 0; of anything else only numbers are told.

    Raises:
        PermanentError: 400 or 422, this message is not valid.
        ProviderError: nonsense, overload, an error of its own, or it does not know us.
        TransientError: any other refusal.
    """
    reason = f"the SMS gateway answered {status}"
    if status in _REFUSED_FOR_GOOD:
        raise PermanentError(reason)
    if status in _NOT_LET_IN:
        raise ProviderError(f"{reason}: it does not take our key")
    if status in RETRY_AFTER_STATUSES:
        raise ProviderError(reason, retry_after=parse_retry_after(retry_after, now=now))
    if status >= _SERVER_ERROR:
        raise ProviderError(reason)
    if status != _OK:
        raise TransientError(reason)
    try:
        answer = from_json(body)
    except ValueError:
        raise ProviderError(f"{reason}, but no JSON") from None
    code = answer.get("code") if isinstance(answer, dict) else None
    if type(code) is not int:
        raise ProviderError(f"{reason}, but JSON without a code")
    if code:
        raise TransientError(f"{reason}, but refused with code {str(code)[:20]}")


def retry_policy(order: SendEmail | SendSms, *, give_up_after: float) -> RetryPolicy:
    """How this message is retried: up all tiers for as long, or until it expires."""
    return RetryPolicy(give_up_after=give_up_after, expires_at=_end(order))


def in_time(order: SendEmail | SendSms, now: Callable[[], float]) -> None:
    """Let pass what may still be handed over.

    Raises:
        ExpiredError: `expires_at` has come.
    """
    end = _end(order)
    if end is not None and now() >= end:
        raise ExpiredError(f"expired at {order.expires_at}")


def _end(order: SendEmail | SendSms) -> float | None:
    return order.expires_at.timestamp() if order.expires_at else None
