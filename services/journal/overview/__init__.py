"""The overview: figures of the whole system, and what is wrong with it."""
