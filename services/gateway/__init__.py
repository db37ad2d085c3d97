"""The HTTP gateway: what can be asked of Ringback's services over AMQP, asked over HTTP.

Owns nothing. Serves `/v1/…`, its OpenAPI description and Swagger UI. Publishes requests to the
queues of the services that own the answers (`scheduler.requests`, `mailings.requests`), and events.
Guarantees that a success is told only after the owning service has committed, or the broker has
confirmed the event; that the client id which a service sees is that of a verified ticket; and that
an answer tells apart what was refused, what was not done (503) and what may or may not have been
done (504).
"""
