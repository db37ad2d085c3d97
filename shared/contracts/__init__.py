"""Every wire model, a file per domain. Frozen, strict, and closed: an unknown field is an error."""
