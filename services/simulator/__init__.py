"""The simulator: what happens to callbacks with given targets, rates, failures and settings.

It makes the decisions with the functions that run in production: lanes and breakers, retries, the
rules of the callback service and of the scheduler. Owns nothing and does no IO.
"""
