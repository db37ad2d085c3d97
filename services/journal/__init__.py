"""The journal: records what happened, from facts.

Owns the PostgreSQL schema `journal`. Reads the stream `journal.facts`, and consumes
`journal.requests`. Publishes redriven and replayed messages, facts on `outcomes`, and requests to
the scheduler. Guarantees that each fact in the stream is stored exactly once, by whichever process,
also after kill -9. What the stream dropped is recorded as a gap. It never slows delivery, and
clients see only their own.
"""
