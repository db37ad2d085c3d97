"""Keep working when others fail: retry decisions, lanes, circuit breakers, batching."""
