"""The scheduler: sends callbacks at a given time.

Owns the PostgreSQL schema `scheduler`. Consumes `schedules` (ScheduleCallback, CancelCallback,
RescheduleCallback), `scheduler.outcomes` (facts about its callbacks) and `scheduler.requests`.
Publishes SendCallback, notifications for the transport amqp, and facts on `outcomes`.

Guarantees that an accepted callback is dispatched at least once, never early, and always under the
same id, whichever process is killed. Clients are isolated from each other.
"""
