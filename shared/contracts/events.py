"""Event: published by producers to the exchange `events`, routing key FROM_SERVICE.EVENT."""

from typing import Annotated, Any, Final

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from shared.contracts.callback import Identifier
from shared.contracts.context import check_context

EVENT: Final = "Event"

# One word of a routing key, and one or more words joined by dots.
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,100}$")]
Words = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")]


class Event(BaseModel):
    """Something that happened in `from_service`. Rules define what follows from it."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    from_service: Word
    event: Annotated[Words, Field(max_length=100)]
    details: Annotated[dict[str, Any], AfterValidator(check_context)] = Field(
        description="The data of the event for rules; any JSON object."
    )
    event_id: Identifier | None = Field(
        default=None,
        description="Unique among the producer's events of this name; a duplicate has no effect. "
        "Default: the message_id, or else a hash of the content.",
    )
    occurred_at: AwareDatetime | None = Field(
        default=None, description="Default: the timestamp of the message."
    )
    expires_at: AwareDatetime | None = Field(
        default=None, description="At or after this time the event has no effect."
    )
