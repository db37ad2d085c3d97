"""Ingestion: applies the rules to events and publishes the resulting commands.

Owns the keys of seen events, and an outbox. Consumes `events` (Event). Publishes postings,
schedules, callbacks and user events.
Guarantees that an event's commands are published at least once, with stable ids, so that duplicates
can be recognised. A duplicate event has no effect while its key is retained. A stale event has no
effect. Invalid events, and events without a rule, go to `events.dead` with the reason.
"""
