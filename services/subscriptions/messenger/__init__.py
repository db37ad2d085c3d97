"""The messenger: users, tokens, messages and user events."""
