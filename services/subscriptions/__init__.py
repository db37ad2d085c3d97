"""Subscriptions: the events of users and the endpoints of customers.

Owns users, tokens, messages between users, user events, endpoints and deliveries. Consumes
`user_events` (UserEvent), facts about its callbacks on `subscriptions.outcomes`, and requests on
`subscriptions.requests`. Publishes SendCallback, and UserEventsWake on `user_events.wake`.
Guarantees that the events of a user are numbered from 1 without gaps, in the order of commits, and
that a repeated event changes nothing.
"""
