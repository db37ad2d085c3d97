"""Retries, lanes, circuit breakers and batching: how a service survives the failures of others."""
