"""Jinja's sandbox and its time limit, used by rules and templates."""
