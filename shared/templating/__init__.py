"""Jinja's sandbox and its time limit, for rules and templates."""
