"""Attempts, timelines and the live tail."""
