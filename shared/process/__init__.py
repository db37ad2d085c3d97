"""The process of a service: lifecycle, logs, metrics, health."""
