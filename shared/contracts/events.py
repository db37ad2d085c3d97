"""Event: what a producer says has happened. Exchange `events`, routing key FROM_SERVICE.EVENT."""

from typing import Annotated, Any, Final

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from shared.contracts.callback import Identifier
from shared.contracts.context import checked_context

EVENT: Final = "Event"

# A word of a routing key; of the second there may be several, joined by dots.
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,100}$")]
Words = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")]


class Event(BaseModel):
    """Something happened in `from_service`. What follows from it, Ringback's rules say."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    from_service: Word
    event: Annotated[Words, Field(max_length=100)]
    details: Annotated[dict[str, Any], AfterValidator(checked_context)] = Field(
        description="What rules take their values from; any JSON object."
    )
    event_id: Identifier | None = Field(
        default=None,
        description="Unique among the producer's events of this name: an event that comes again is "
        "not acted on again. Left out: the message_id counts, without that the content.",
    )
    occurred_at: AwareDatetime | None = Field(
        default=None, description="Left out: the message's timestamp counts."
    )
    expires_at: AwareDatetime | None = Field(
        default=None, description="Not acted on at or after this moment."
    )
