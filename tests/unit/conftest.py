"""No deadlines for Hypothesis: examples may be slow on a loaded machine."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "ringback", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("ringback")
