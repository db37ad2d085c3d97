"""Health of targets, and the overview."""
