"""Paused targets."""
