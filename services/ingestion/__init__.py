"""Ingestion: what happened elsewhere becomes what Ringback does about it, by rules.

Owns the keys of events seen and an outbox. Consumes `events` (Event). Publishes postings,
schedules, callbacks and user events. Guarantees that an event's commands are published at least
once, under ids by which a repeat is recognised; that an event that comes again, while its key is
kept, is not acted on again; and that one which is too old is not acted on at all. What can't be
understood, and what no rule knows, lies in `events.dead` with its reason.
"""
