"""The callback sender: a message in RabbitMQ becomes a signed HTTP request that arrives.

Owns nothing. Consumes `callbacks` (SendCallback). Publishes HTTP requests, and facts on
`outcomes`. Guarantees that each message is delivered at least once with the same `webhook-id`, or
lies in `callbacks.dead` with its reason; and that a slow or dead target costs the others nothing.
"""
