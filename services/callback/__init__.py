"""The callback service: delivers callbacks as signed HTTP requests.

Owns no data. Consumes `callbacks` (SendCallback). Publishes HTTP requests, and facts on
`outcomes`. Guarantees that each message is delivered at least once with the same `webhook-id`, or
is dead-lettered in `callbacks.dead` with its reason. A slow or failing target does not affect the
others.
"""
