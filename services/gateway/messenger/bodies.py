"""Parsing of the messenger's requests: fields as JSON or as a form, and the token."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from aiohttp import web
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from services.gateway.auth import AUTHORIZATION
from services.gateway.messenger.codes import Code, coded_error
from services.gateway.parsing import JSON, check_media_type, invalid, read_body
from shared.contracts.context import field_errors
from shared.contracts.requests import FieldError
from shared.contracts.users import token_hash
from shared.http.problem import ProblemError

FORM: Final = "application/x-www-form-urlencoded"
MEDIA_TYPES: Final = (JSON, FORM)
# The longest text of a message is 120,000 bytes in a form: each character is four escaped bytes.
MAX_BODY_BYTES: Final = 131_072
MAX_FORM_FIELDS: Final = 20
# Errors that have a code of their own: the field and pydantic's type.
_CODES: Final[Mapping[tuple[tuple[int | str, ...], str], Code]] = {
    (("name",), "string_too_long"): Code.NAME_TOO_LONG,
    (("password",), "string_too_short"): Code.PASSWORD_TOO_SHORT,
}

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a body. In a form, all values are text."""

    values: dict[str, Any]
    form: bool

    def parse(self, model: type[M]) -> M:
        """Return the fields as this model.

        Raises:
            ProblemError: 422 with the code -4, -5 or -3, in this order.
        """
        try:
            if self.form:
                return model.model_validate_strings(self.values, strict=False)
            return model.model_validate(self.values)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_context=False, include_input=False)
            found = {_CODES.get((fault["loc"], fault["type"])) for fault in faults}
            for code in _CODES.values():
                if code in found:
                    raise coded_error(HTTPStatus.UNPROCESSABLE_ENTITY, code) from None
            raise invalid(field_errors(error)) from None

    def token_hash(self, request: web.Request) -> str:
        """Return the hash of the token: the field `token`, or a bearer token.

        Raises:
            ProblemError: 401 with the code -1; there is no token, or there are two different ones.
        """
        token = self.values.get("token")
        given = {token} if isinstance(token, str) else set()
        return single_token_hash(given | bearer_tokens(request))


def single_token_hash(tokens: set[str]) -> str:
    """Return the hash of the token, if there is exactly one.

    Raises:
        ProblemError: 401 with the code -1; there is no token, or there are two different ones.
    """
    if len(tokens) != 1:
        raise coded_error(HTTPStatus.UNAUTHORIZED, Code.INVALID_TOKEN)
    return token_hash(next(iter(tokens)))


def bearer_tokens(request: web.Request) -> set[str]:
    """Return the tokens in the header `Authorization`.

    Raises:
        ProblemError: 401 with the code -1; the header has another scheme.
    """
    values = [value.partition(" ") for value in request.headers.getall(AUTHORIZATION, ())]
    if any(scheme.lower() != "bearer" for scheme, _, _ in values):
        raise coded_error(HTTPStatus.UNAUTHORIZED, Code.INVALID_TOKEN)
    return {token.strip() for _, _, token in values}


async def read_fields(request: web.Request) -> Fields:
    """Return the fields of a body. No body means no fields, unless it is declared as JSON.

    Raises:
        ProblemError: 415, 413, 408, 400 if the body is not JSON or a form, 422 if not an object.
    """
    # aiohttp's clients declare an empty body as application/octet-stream.
    if not request.can_read_body and request.content_type not in MEDIA_TYPES:
        return Fields({}, form=False)
    media_type = check_media_type(request, MEDIA_TYPES)
    body = await read_body(request, MAX_BODY_BYTES)
    form = media_type == FORM
    return Fields(_form(body) if form else _object(body), form)


def _object(body: bytes) -> dict[str, Any]:
    try:
        # NaN, Infinity and unpaired surrogates are not valid JSON.
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise _malformed(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise invalid([FieldError(field="", message="must be an object")])
    return value


def _form(body: bytes) -> dict[str, Any]:
    try:
        # Empty sequences, such as one after a trailing `&`, are ignored, as in the URL Standard.
        text = "&".join(filter(None, body.decode().split("&")))
        pairs = parse_qsl(
            text,
            keep_blank_values=True,
            strict_parsing=bool(text),
            errors="strict",
            max_num_fields=MAX_FORM_FIELDS,
        )
    except ValueError:  # its text can contain a part of the body
        raise _malformed("the body is not a form in UTF-8") from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise _malformed("a field is given more than once")
    return fields


def _malformed(detail: str) -> ProblemError:
    return ProblemError(HTTPStatus.BAD_REQUEST, "malformed", detail)
