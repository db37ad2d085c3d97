"""Messaging, storage and processes: the base of every service, without business rules."""
