"""Health of targets: the figures of their attempts, their circuit breakers and full lanes."""
