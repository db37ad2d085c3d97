"""From scheduled callbacks to the arguments of queries, and from rows back. Pure, no IO."""

from typing import Any

from services.scheduler.domain import ScheduledCallback, parse_rules
from services.scheduler.messages import Content
from services.scheduler.records import NewCallback
from shared.contracts.schedules import Status


def insert_values(new: NewCallback) -> tuple[Any, ...]:
    """Return the arguments of `insert`, in their order."""
    content = new.content
    return (
        new.id,
        new.client_id,
        new.group_key,
        new.event_key,
        new.fingerprint,
        content.context,
        content.message,
        content.exchange,
        content.routing_key,
        content.format,
        new.lease,
        new.stop_after,
        new.rules,
        new.traceparent,
        new.run_at,
        new.delay,
    )


def content_of(row: Any) -> Content:
    """Return the content in a row."""
    return Content(
        row["context"], row["message"], row["exchange"], row["routing_key"], row["format"]
    )


def callback_of(row: Any) -> ScheduledCallback:
    """Return the callback in a row."""
    return ScheduledCallback(
        row["id"],
        row["client_id"],
        row["group_key"],
        row["event_key"],
        row["run_at"],
        row["next_at"],
        row["occurrence"],
        Status(row["status"]),
        row["in_flight"],
        row["cancel_requested"],
        row["dispatch"],
        row["first_dispatch"],
        row["main_retries"],
        row["earlier_attempts"],
        row["dispatch_attempts"],
        row["next_attempt_at"],
        row["stop_at"],
        row["last_error"],
        parse_rules(row["rules"]),
    )


def save_values(callback: ScheduledCallback) -> tuple[Any, ...]:
    """Return the arguments of `save`, in their order."""
    return (
        callback.id,
        callback.run_at,
        callback.next_at,
        callback.occurrence,
        callback.status,
        callback.in_flight,
        callback.cancel_requested,
        callback.dispatch,
        callback.first_dispatch,
        callback.main_retries,
        callback.earlier_attempts,
        callback.dispatch_attempts,
        callback.next_attempt_at,
        callback.stop_at,
        callback.last_error,
    )


def finish_values(callback: ScheduledCallback) -> tuple[Any, ...]:
    """Return the arguments of `finish`, in their order."""
    return (
        callback.id,
        callback.client_id,
        callback.status,
        callback.attempts,
        callback.last_error,
    )
