"""The reasons why a sign-in fails, each with the text of its page."""

from enum import Enum
from http import HTTPStatus

from shared.errors import RingbackError


class Reason(Enum):
    """The cause of a failed sign-in: its name in logs, the status, the heading and an advice."""

    ATTEMPT = (
        "unknown_attempt",
        HTTPStatus.BAD_REQUEST,
        "This sign-in is not known",
        "It was started ten minutes ago, in another browser, or not by you. Sign in again.",
    )
    DENIED = (
        "denied",
        HTTPStatus.FORBIDDEN,
        "The provider did not sign you in",
        "Sign in again. If this happens again, contact the administrator of the provider.",
    )
    UNAVAILABLE = (
        "provider_unavailable",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The OpenID provider is unavailable",
        "Try again in a minute.",
    )
    CONFIGURATION = (
        "provider_configuration",
        HTTPStatus.BAD_GATEWAY,
        "The OpenID provider and the console do not fit together",
        "Correct the RINGBACK_OIDC_… settings of the console, or the client at the provider.",
    )
    TOO_MANY = (
        "too_many",
        HTTPStatus.TOO_MANY_REQUESTS,
        "Too many sign-ins from this address",
        "Try again in a few seconds.",
    )
    CODE = (
        "code_refused",
        HTTPStatus.BAD_REQUEST,
        "The provider refused the code of this sign-in",
        "A code can be used once, and only for a minute. Sign in again.",
    )
    TOKEN = (
        "invalid_token",
        HTTPStatus.FORBIDDEN,
        "The ID token is not valid",
        "Sign in again. If this happens again, check the provider.",
    )
    ALGORITHM = (
        "wrong_algorithm",
        HTTPStatus.FORBIDDEN,
        "The ID token is signed with a forbidden algorithm",
        "Set the provider to sign ID tokens of the console with RS256, ES256 or EdDSA.",
    )
    KEY = (
        "unknown_key",
        HTTPStatus.FORBIDDEN,
        "The ID token is signed with an unknown key",
        "If the provider has just rotated its keys, sign in again in a minute.",
    )
    SIGNATURE = (
        "wrong_signature",
        HTTPStatus.FORBIDDEN,
        "The signature of the ID token is not valid",
        "Sign in again. If this happens again, check the keys of the provider.",
    )
    ISSUER = (
        "wrong_issuer",
        HTTPStatus.FORBIDDEN,
        "The ID token is from another issuer",
        "RINGBACK_OIDC_ISSUER must be exactly the issuer of the provider.",
    )
    AUDIENCE = (
        "wrong_audience",
        HTTPStatus.FORBIDDEN,
        "The ID token is for another application",
        "RINGBACK_OIDC_CLIENT_ID must be the client id of the console at the provider.",
    )
    EXPIRED = (
        "expired_token",
        HTTPStatus.FORBIDDEN,
        "The ID token is expired or not valid yet",
        "Sign in again. If this happens again, compare the clocks of the provider and the console.",
    )
    NONCE = (
        "wrong_nonce",
        HTTPStatus.FORBIDDEN,
        "The ID token is from another sign-in",
        "Its nonce is not the one of this browser. Sign in again.",
    )
    NO_ROLE = (
        "no_role",
        HTTPStatus.FORBIDDEN,
        "You have no role in the console",
        "An administrator of the provider can give you the role viewer, operator or admin.",
    )

    def __init__(self, code: str, status: HTTPStatus, heading: str, advice: str) -> None:
        self.code = code
        self.status = status
        self.heading = heading
        self.advice = advice


class SignInError(RingbackError):
    """A sign-in failed. The text describes the cause without any token, code or secret."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
