"""Messaging and process: what every service stands on. No business rule; never imports services."""
