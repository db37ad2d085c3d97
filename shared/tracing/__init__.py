"""Spans of OpenTelemetry. Only `active` is imported while tracing is off."""
