"""Parses the body of a message into a model, or reports every error in it."""

from collections.abc import Mapping
from typing import Final, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from shared.amqp.message import Message
from shared.contracts.context import field_errors
from shared.contracts.headers import APP_ID
from shared.contracts.requests import Failure, invalid
from shared.errors import ContractViolationError

JSON: Final = "application/json"
MAX_ERRORS_LISTED: Final = 10

M = TypeVar("M", bound=BaseModel)


def parse_message(message: Message, models: Mapping[str, type[M]], *, max_bytes: int) -> M:
    """Parse a message into the model that its property `type` names.

    Unknown fields are errors. Those of another service of Ringback are from a newer version, and
    are ignored.

    Raises:
        ContractViolationError: the message is not valid. Its text names every wrong field, but
            contains no value.
    """
    properties = message.properties
    if len(message.body) > max_bytes:
        raise ContractViolationError(f"{len(message.body)} bytes exceed the limit of {max_bytes}")
    model = models.get(properties.type or "")
    if model is None:
        known = ", ".join(repr(name) for name in models)
        wanted = known if len(models) == 1 else f"one of {known}"
        raise ContractViolationError(f"type is {properties.type!r}, not {wanted}")
    if (properties.content_type or "").split(";")[0].strip().lower() != JSON:
        raise ContractViolationError(f"content_type is {properties.content_type!r}, not {JSON!r}")
    if properties.content_encoding not in (None, "", "identity", "utf-8", "UTF-8"):
        raise ContractViolationError(
            f"content_encoding {properties.content_encoding!r} is not supported"
        )
    extra: Literal["ignore"] | None = "ignore" if properties.app_id == APP_ID else None
    try:
        return model.model_validate_json(message.body, extra=extra)
    except ValidationError as error:
        faults = list(map(str, field_errors(error)))
        others = len(faults) - MAX_ERRORS_LISTED
        more = f" and {others} more" if others > 0 else ""
        raise ContractViolationError("; ".join(faults[:MAX_ERRORS_LISTED]) + more) from None


def parse_request(model: type[M], body: bytes, *, within: str = "") -> M | Failure:
    """Parse the body of a request, or return a failure with every wrong field.

    `within` is a field to remove from the beginning of the paths.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        return invalid(field_errors(error, within=within))
