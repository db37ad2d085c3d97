"""Commands to reschedule or change a scheduled callback, and to cancel it.

They are messages on the exchange `schedules`, and the bodies of RPC operations.
"""

from typing import Annotated, Any, Final, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field, model_validator

from shared.contracts.context import fields_error
from shared.contracts.schedules import (
    STRICT,
    CallbackHeaders,
    Delay,
    EventKey,
    GroupKey,
    Id,
    IfMatch,
    RunAt,
    Url,
    check_callback_context,
    check_due_time,
    contains_retry_params,
)

CANCEL_CALLBACK: Final = "CancelCallback"
RESCHEDULE_CALLBACK: Final = "RescheduleCallback"


def check_selector(id_: UUID | None, group_key: str | None, event_key: str | None) -> None:
    """Check that a selector identifies one callback, either by id or by keys.

    Raises:
        ValueError: it contains neither, or both.
    """
    if (id_ is None) == (event_key is None):
        raise fields_error(
            [("id", "set either id, or event_key and the group_key, if the callback has one")]
        )
    if id_ is not None and group_key is not None:
        raise fields_error([("group_key", "is only allowed with event_key")])


class CancelCallback(BaseModel):
    """Cancel one callback by id or keys, or a whole group by `group_key` alone.

    Used as message `CancelCallback` and by the operation `CancelCallbacks`.
    """

    model_config = STRICT

    id: Id = None
    group_key: GroupKey = None
    event_key: EventKey = None
    if_match: IfMatch = None
    cursor: Annotated[
        str | None,
        Field(
            max_length=255,
            description="Only for a whole group: `next_cursor` of the response before.",
        ),
    ] = None

    @model_validator(mode="after")
    def _check_selector(self) -> Self:
        if not self.whole_group:
            check_selector(self.id, self.group_key, self.event_key)
            if self.cursor is not None:
                raise fields_error([("cursor", "is only allowed for a group")])
        elif self.if_match is not None:
            raise fields_error([("if_match", "is not allowed for a group")])
        return self

    @property
    def whole_group(self) -> bool:
        """Whether it cancels all callbacks of the group."""
        return self.group_key is not None and self.event_key is None and self.id is None


class ChangedScheme(BaseModel):
    """The part of a `notify_scheme` that can be changed."""

    model_config = STRICT

    headers: CallbackHeaders = Field(description="Replace all headers. Transport `http` only.")


def _check_changed_context(value: Any) -> Any:
    value = check_callback_context(value)
    if contains_retry_params(value):
        raise fields_error(
            [("retry_params", "cannot be changed; replace the callback by its keys")]
        )
    return value


NewUrl = Annotated[Url | None, Field(description="Replaces the URL. Transport `http` only.")]
NewScheme = Annotated[ChangedScheme | None, Field(description="Replaces the headers.")]
NewContext = Annotated[
    Any,
    AfterValidator(_check_changed_context),
    Field(description="Replaces the context. It cannot contain `retry_params`."),
]


class RescheduleCallback(BaseModel):
    """Change a waiting callback: its due time, its URL, its headers or its context.

    Used as message and operation of this name.
    """

    model_config = STRICT

    id: Id = None
    group_key: GroupKey = None
    event_key: EventKey = None
    run_at: RunAt = None
    delay: Delay = None
    url: NewUrl = None
    notify_scheme: NewScheme = None
    context: NewContext = None
    if_match: IfMatch = None

    @model_validator(mode="after")
    def _check_selector(self) -> Self:
        check_selector(self.id, self.group_key, self.event_key)
        check_due_time(self.run_at, self.delay)
        if not (self.changes_time or self.changes_content):
            message = "set run_at, delay, url, notify_scheme or context"
            raise fields_error([("run_at", message)])
        return self

    @property
    def changes_time(self) -> bool:
        """Whether it moves the callback to another due time."""
        return self.run_at is not None or self.delay is not None

    @property
    def changes_content(self) -> bool:
        """Whether it changes what is sent, or where to. The context may become null."""
        changed = self.url is not None or self.notify_scheme is not None
        return changed or "context" in self.model_fields_set
