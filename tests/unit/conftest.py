"""Hypothesis judges what is shown, not how long a loaded machine takes to show it."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "ringback", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("ringback")
