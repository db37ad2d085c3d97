"""Health of targets: the figures of their attempts, and their circuit breakers."""
