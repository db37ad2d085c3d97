"""The scheduler: call me back at a set moment.

Owns the PostgreSQL schema `scheduler`. Consumes `schedules` (ScheduleCallback, CancelCallback,
RescheduleCallback), `scheduler.outcomes` (facts about its callbacks) and `scheduler.requests`.
Publishes SendCallback, notifications by amqp, and facts on `outcomes`. Guarantees that an accepted
event fires at least once and never early, each time under the same id, whatever is killed; and that
no client sees or changes another's.
"""
