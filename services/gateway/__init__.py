"""The HTTP gateway: Ringback's services over HTTP.

Owns no data. Serves `/v1/…`, its OpenAPI document and Swagger UI. Publishes events, and requests to
the services' queues (`scheduler.requests`, `mailings.requests`). Guarantees that a success is
reported only after the service has committed, or the broker has confirmed the event. The client id
is that of a verified ticket. Errors distinguish rejected requests (4xx), requests that were not
carried out (503) and unknown outcomes (504).
"""
